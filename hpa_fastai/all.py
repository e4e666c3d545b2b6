"Every public name, as `from hpa_fastai import *` gives it."
from .labels import *
from .files import *
from .cells import *
from .stains import *
from .patterns import *
from .optics import *
from .simulate import *
from .images import *
from .pack import *
from .splits import *
from .duplicates import *
from .normalize import *
from .data import *
from .sampling import *
from .augment import *
from .losses import *
from .metrics import *
from .rules import *
from .calibration import *
from .shift import *
from .thresholds import *
from .gapnet import *
from .models import *
from .arcface import *
from .learner import *
from .checkpoint import *
from .averaging import *
from .masks import *
from .inference import *
from .export import *
from .recipes import *
from .crossval import *

__all__ = [o for o in globals() if not o.startswith('_')]
