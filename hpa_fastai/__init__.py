"""Modules:

- `hpa_fastai.decide.calibration`: Probabilities that mean what they say, and the decisions that follow from them
- `hpa_fastai.decide.ensembles`: One answer from several networks: averaged, ranked, put to the vote, or weighted
- `hpa_fastai.decide.rules`: From probabilities to label sets: thresholds fitted on some images, and used on others
- `hpa_fastai.decide.shift`: Thresholds for a test set in which labels are more or less frequent than in training
- `hpa_fastai.decide.submission`: Probabilities on disk, and a submission in the right order
- `hpa_fastai.decide.thresholds`: The best rule for a network's probabilities, and what it will score on new images
- `hpa_fastai.decide.tta`: Ask the network about eight views of each image, and average its answers"""

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
