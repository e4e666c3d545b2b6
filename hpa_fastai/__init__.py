"""Modules:

- `hpa_fastai.images.download`: Get the images of the Human Protein Atlas and of the competition, and go on after any interruption
- `hpa_fastai.models.arcface`: Learn which images belong together, and let a very similar training image pass on its labels
- `hpa_fastai.models.factory`: Any timm network, for images of four channels with several labels
- `hpa_fastai.models.gapnet`: Three small networks that you can read from top to bottom
- `hpa_fastai.models.heads`: From a feature map to one logit per label
- `hpa_fastai.models.masks`: Find nuclei and cells, and train a network on masks and labels together
- `hpa_fastai.models.stems`: How a network that was trained on photographs gets a fourth input channel
- `hpa_fastai.models.weights`: Save and load a network's weights without running code from a file"""

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
