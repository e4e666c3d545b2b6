"""Modules:

- `hpa_fastai.files`: Atomic file writes: a file is either complete or absent
- `hpa_fastai.images.pack`: Thirty thousand samples in one file, from which a batch is read at the speed of memory
- `hpa_fastai.images.samples`: One sample, four stains, whatever files it comes in; and how to look at it
- `hpa_fastai.images.splits`: Folds in which every label has its share, and nothing leaks
- `hpa_fastai.images.storage`: Samples in one file: stored in tiles or compressed, mapped into memory, and gathered into batches
- `hpa_fastai.labels`: The 28 places in the cell, the competition's two lists, and the way from label sets to a matrix and back
- `hpa_fastai.workers`: Work in several processes or threads, with results in order"""

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
