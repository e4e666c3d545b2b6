"""Modules:

- `hpa_fastai.data.augment`: More ways to look at the same cells: turned by any angle, out of focus, noisy, with holes
- `hpa_fastai.data.block`: From labels and images to fastai's DataLoaders, in one call or with a `DataBlock`
- `hpa_fastai.data.buffers`: Reusable memory for batches, and their way to the device
- `hpa_fastai.data.loader`: `PackDL`: a fastai loader that gathers whole batches from a pack
- `hpa_fastai.data.normalize`: From the bytes of a batch to the floats of a network, in one pass
- `hpa_fastai.data.sampling`: How often an epoch shows each image, so that rare labels are seen often enough
- `hpa_fastai.data.sources`: Where batches come from: a pack, a folder of files, or your own kind of storage
- `hpa_fastai.data.symmetries`: The eight symmetries of the square: to augment, to average predictions, and to undo"""

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
