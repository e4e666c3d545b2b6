"Every public name, as `from hpa_fastai import *` gives it."
from .labels import *
from .files import *

__all__ = [o for o in globals() if not o.startswith('_')]
