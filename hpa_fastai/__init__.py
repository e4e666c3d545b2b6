"""Modules:

- `hpa_fastai.runs.recipes`: Every choice of a system, by name, in a file that a run can be repeated from"""

__version__ = "0.0.1"

def __getattr__(name):
    "Every public name, imported on first use (PEP 562), so that `import hpa_fastai` and each command's `--help` stay quick."
    if name.startswith('__') and name != '__all__': raise AttributeError(name)
    from importlib import import_module
    everything = import_module('hpa_fastai.all')
    if name == '__all__': return everything.__all__
    if name in everything.__all__: return getattr(everything, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__():
    from importlib import import_module
    return sorted([*globals(), *import_module('hpa_fastai.all').__all__])
