"Every public name, as `from hpa_fastai import *` gives it."
from .labels import *
from .files import *
from .images import *

__all__ = [o for o in globals() if not o.startswith('_')]
