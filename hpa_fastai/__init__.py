"""Modules:

- `hpa_fastai.explain.embeddings`: Images as the network sees them: which lie together, and which known images are nearest.
- `hpa_fastai.explain.gradcam`: Where in the image did the network see it? A heat map for each label, over the composite.
- `hpa_fastai.explain.interpret`: Which labels you can trust, what is taken for what, and the images behind the numbers.
- `hpa_fastai.explain.neighbours`: Train a network that learns which images belong together, and ask it for each image's nearest neighbour.
- `hpa_fastai.explain.plots`: Learning curves, F1 of each label, confusions, thresholds, and the images that were judged worst.
- `hpa_fastai.runs.report`: A finished run as one page that you can mail: how good it is, which labels to trust, and images of right and wrong."""

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
