"""Modules:

- `hpa_fastai.app.answers`: The labels of an upload, and for one image all that speaks for and against them
- `hpa_fastai.app.page`: hpa-app in the browser: what it shows, who may reach it, and what it keeps
- `hpa_fastai.app.pictures`: One image with some of its stains, brighter or darker, and with a heat map where you ask for one
- `hpa_fastai.app.uploads`: Files of a visitor: which are taken, how many and how large, and when they are deleted
- `hpa_fastai.app.visits`: What happens when somebody drops files, takes an example, chooses a sample, or asks for a heat map
- `hpa_fastai.app.words`: Labels, doubts, neighbours and errors as HTML, in which nothing that a visitor wrote is code
- `hpa_fastai.arguments`: What is typed on a command line, checked before anything heavy is loaded
- `hpa_fastai.choices`: What somebody chose in a file, checked before any work begins
- `hpa_fastai.cli`: All commands: from a folder of images to a submission
- `hpa_fastai.cli_app`: hpa-app: a page in the browser on which anybody can label images
- `hpa_fastai.cli_export`: hpa-export: from a run to a folder that other people and other programs can use
- `hpa_fastai.cli_kaggle`: Gather what Kaggle's image lacks in a folder, for a notebook that may not use the internet
- `hpa_fastai.cli_predict`: hpa-predict: from a folder of images to a table of labels, with or without training
- `hpa_fastai.cli_weights`: From somebody's file of weights to a run that every command can open
- `hpa_fastai.data.augment`: More ways to look at the same cells: turned by any angle, out of focus, noisy, with holes
- `hpa_fastai.data.block`: From labels and images to fastai's DataLoaders, in one call or with a `DataBlock`
- `hpa_fastai.data.buffers`: Reusable memory for batches, and sending data to the device
- `hpa_fastai.data.likeness`: What a network was trained on, and which images are unlike that
- `hpa_fastai.data.loader`: `PackDL`: a fastai loader that gathers whole batches from a pack
- `hpa_fastai.data.normalize`: From uint8 batches to a network's normalised floats, in one pass
- `hpa_fastai.data.quality`: Which images are blurred, too bright, of another size, without cells, or have their stains mixed up
- `hpa_fastai.data.sampling`: How often an epoch shows each image, so that rare labels are seen often enough
- `hpa_fastai.data.sources`: Where batches come from: a pack, a folder of files, or your own kind of storage
- `hpa_fastai.data.symmetries`: The eight symmetries of the square: to augment, to average predictions, and to undo
- `hpa_fastai.decide.calibration`: Probabilities that mean what they say, and the decisions that follow from them
- `hpa_fastai.decide.conformal`: Sets that hold at least nine of ten true labels, on average, and what that promise depends on
- `hpa_fastai.decide.ensembles`: Combine several networks: by averages, ranks, votes, or fitted weights
- `hpa_fastai.decide.outcome`: From out-of-fold probabilities to a rule, to label sets, and to their scores
- `hpa_fastai.decide.rules`: From probabilities to label sets: fit thresholds on some images, and use them on others
- `hpa_fastai.decide.shift`: Thresholds for a test set in which labels are more or less frequent than in training
- `hpa_fastai.decide.submission`: Probabilities on disk, and a submission in the right order
- `hpa_fastai.decide.thresholds`: The best rule for a network's probabilities, and what it will score on new images
- `hpa_fastai.decide.trust`: A word for each label: trust, look twice, don't
- `hpa_fastai.decide.tta`: Predict on eight views of each image, and average the predictions
- `hpa_fastai.decide.worth`: What to expect on the test set of a system with a given score out of sample
- `hpa_fastai.errors`: What is wrong, where, and what to do about it, in one line
- `hpa_fastai.explain.atypical`: Images whose features a network has not met before
- `hpa_fastai.explain.embeddings`: Images as the network sees them: maps of similar images, and nearest neighbours
- `hpa_fastai.explain.gradcam`: Where in the image does the network see a label? A heat map for each label
- `hpa_fastai.explain.interpret`: Which labels you can trust, which labels are confused, and the images behind the numbers
- `hpa_fastai.explain.neighbours`: Train a network to find each image's nearest neighbour
- `hpa_fastai.explain.plots`: Learning curves, F1 of each label, confusions, thresholds, and the worst images
- `hpa_fastai.files`: Files that are either complete or absent, and hold what they should
- `hpa_fastai.images.assumptions`: What is assumed about the samples of a folder, said once and kept
- `hpa_fastai.images.cells`: Find every cell of a field, at any magnification, without any training
- `hpa_fastai.images.competition`: Get them from Kaggle, and unpack them without harm
- `hpa_fastai.images.download`: Get images of the Human Protein Atlas
- `hpa_fastai.images.duplicates`: Find images of the same field, shifted, brighter or noisier, among all pairs
- `hpa_fastai.images.formats`: One image file as an array of planes, with what the file says about them, and in eight bits
- `hpa_fastai.images.intensity`: From the numbers of a camera to eight bits: by its full scale, or by the range of the values
- `hpa_fastai.images.kaggle`: Lists and files checked together, packed, and divided into folds
- `hpa_fastai.images.layouts`: What microscopes call their files and stains, and which files of a folder are one sample
- `hpa_fastai.images.merging`: Add other labelled images to the competition's, without taking any image twice
- `hpa_fastai.images.metadata`: Names of planes, bits and µm per pixel, as image files tell them
- `hpa_fastai.images.microscopes`: CZI of Zeiss, LIF of Leica and ND2 of Nikon, as they come from the microscope
- `hpa_fastai.images.omezarr`: Images that are folders of compressed chunks, as bioimage archives keep them
- `hpa_fastai.images.pack`: Thirty thousand samples in one file, from which a batch is read at the speed of memory
- `hpa_fastai.images.packed`: A folder of samples that were decoded and resized once, opened in an instant
- `hpa_fastai.images.samples`: One sample, four stains, in whatever files it comes, and how to look at it
- `hpa_fastai.images.scale`: Images at the scale that a network was trained at, and large fields in parts
- `hpa_fastai.images.sheet`: A glance at how a folder was understood, before hours are spent on it
- `hpa_fastai.images.sources`: One sample, four stains, from one file or from several
- `hpa_fastai.images.splits`: Folds in which every label is evenly spread, and nothing leaks
- `hpa_fastai.images.stacks`: What the axes of an image are, how large it may be, and one plane in place of many slices
- `hpa_fastai.images.tables`: A row for each image of a folder, batch by batch, to be stopped and resumed at any time
- `hpa_fastai.images.unfinished`: How a pack is begun, resumed after a kill, and shared by several processes
- `hpa_fastai.jobs`: Long work on many files, with an eye on which have changed and which can't be read
- `hpa_fastai.labels`: The 28 places in the cell, the competition's two lists, and label sets as a matrix
- `hpa_fastai.models.arcface`: Learn which images belong together, and let near images pass on their labels
- `hpa_fastai.models.bodies`: From an image to a feature map, by any network of timm's
- `hpa_fastai.models.factory`: Any timm network, for images of four channels with several labels
- `hpa_fastai.models.gamma`: A first layer that learns how much to lift the dark parts of each stain
- `hpa_fastai.models.gapnet`: Three small networks that you can read from top to bottom
- `hpa_fastai.models.heads`: From a feature map to one logit per label
- `hpa_fastai.models.imagenorm`: A first layer that makes bright and dim images alike, inside the network
- `hpa_fastai.models.masks`: Find nuclei and cells, and train a network on masks and labels together
- `hpa_fastai.models.pretrained`: Recognise a file of weights, and translate it to this library's networks
- `hpa_fastai.models.simulated`: Weights from simulated cells, as a start for your own training
- `hpa_fastai.models.stems`: How a network that was trained on photographs gets a fourth input channel
- `hpa_fastai.models.subcell`: A network for single cells, whose files have Hugging Face's names and channels in another order
- `hpa_fastai.models.trained`: Which networks a run has, how they are built, and how images are prepared for them
- `hpa_fastai.models.vits`: What is known about somebody's weights, and how a vision transformer's are read
- `hpa_fastai.models.weights`: Save and load a network's weights without running code from a file
- `hpa_fastai.runs.adapted`: Let a network take brightness and contrast of its features from the images that it is asked about
- `hpa_fastai.runs.bioimageio`: A description that the BioImage Model Zoo and the programs around it read, with a test that anyone can repeat
- `hpa_fastai.runs.browse`: Probabilities and decisions of all images, pictures of some hundred, and labels to check
- `hpa_fastai.runs.bundle`: A network, what is known of it, and its ONNX in one folder that leaves the machine
- `hpa_fastai.runs.card`: What a network saw, how good it is at each label, where not to believe it, and under which licence it comes
- `hpa_fastai.runs.cells`: A row for each cell of a field or a folder: where it is, what a network says of it, and its embedding
- `hpa_fastai.runs.combine`: Combine finished runs into one, and estimate its score out of sample
- `hpa_fastai.runs.compare`: Which run is better, and is the difference more than luck?
- `hpa_fastai.runs.converted`: Write somebody's network as a run, which everything in this library can open
- `hpa_fastai.runs.crossval`: From a folder in Kaggle's layout to a submission and an estimate of its score
- `hpa_fastai.runs.doubts`: Find labels of the training images that are likely wrong
- `hpa_fastai.runs.features`: A row of numbers for each image, and what can be learnt from a few labelled ones
- `hpa_fastai.runs.fold`: Train a recipe phase by phase, and resume where it was stopped
- `hpa_fastai.runs.folder`: The folder of a finished run: what is in it, and how to read it
- `hpa_fastai.runs.graph`: Everything between an image's bytes and its probabilities in one file that other programs can compute
- `hpa_fastai.runs.label_folder`: From a folder of images to a table of labels, with all that was assumed
- `hpa_fastai.runs.networks`: From images to the probabilities of several networks
- `hpa_fastai.runs.onnx`: A bundle's labels with NumPy and onnxruntime alone, for programs that can't carry PyTorch
- `hpa_fastai.runs.page`: Templates, tables, bars, plots and data of an HTML page that needs nothing else
- `hpa_fastai.runs.pictures`: Choose some hundred images of a run, and make their stains and heat maps small
- `hpa_fastai.runs.predictor`: From images to labels: a trained run, read from its folder
- `hpa_fastai.runs.recipes`: Every choice of a system, by name, in a file from which a run can be repeated
- `hpa_fastai.runs.report`: A finished run as one page to work with: what it is worth, every image, and labels to correct
- `hpa_fastai.runs.scale`: From a field of any size and magnification to the squares that a network takes
- `hpa_fastai.runs.sections`: How good it is, which labels to trust, what is taken for what, how decisions are made
- `hpa_fastai.runs.setup`: A recipe's words turned into batches and a fastai `Learner`
- `hpa_fastai.runs.shipped`: The network that ships with the package, and what is known of a network's answers
- `hpa_fastai.runs.stages`: Train a network, predict what it has not seen, and leave a file after every step
- `hpa_fastai.sharing`: Several processes, or several machines, work on one job by way of a folder that all of them see
- `hpa_fastai.simulate.cells`: Four cell lines, and the layout that all stains of a field share
- `hpa_fastai.simulate.cytoplasm`: Fourteen labels outside of the nucleus: sheets, nets, filaments and edges
- `hpa_fastai.simulate.dataset`: A labelled field of cells for any label set, and a whole data set in Kaggle's layout
- `hpa_fastai.simulate.layers`: A field in layers, and the images that it can give
- `hpa_fastai.simulate.layout`: Where cells, nuclei, spindles and aggresomes lie in a simulated field
- `hpa_fastai.simulate.optics`: From light to numbers: blur, photons, contrast, and two microscopes
- `hpa_fastai.simulate.patterns`: Where the protein is: one small function per label; the six of the nucleus
- `hpa_fastai.simulate.scans`: Blur, photons and files of composed images
- `hpa_fastai.simulate.stains`: Microtubules, chromatin and endoplasmic reticulum: red, blue and yellow
- `hpa_fastai.simulate.strokes`: Noise, points, strands and outlines: the strokes of simulated cells
- `hpa_fastai.simulate.vesicles`: The last eight labels: Golgi apparatus, vesicles, droplets, blobs, rods and rings
- `hpa_fastai.storage`: Many samples in one file, gathered into batches
- `hpa_fastai.tiles`: One sample as bytes: in tiles or compressed, and measured
- `hpa_fastai.train.averaging`: Averages of many weights, to end a fit with instead of the last ones, or to learn from
- `hpa_fastai.train.checkpoint`: Continue an interrupted training exactly where it stopped, and keep the best epoch
- `hpa_fastai.train.f1_losses`: Training on F1 itself: the losses of teams who did that well
- `hpa_fastai.train.intervals`: How sure a macro F1 is, and how good a network is at each label
- `hpa_fastai.train.learner`: One call from DataLoaders to a fastai `Learner` that is set up for four-channel images
- `hpa_fastai.train.losses`: Losses for images with several labels, and how to add one of your own
- `hpa_fastai.train.metrics`: Macro F1 as the competition scored it, and average precision
- `hpa_fastai.train.probe`: Refit the last layer of a trained network to a dozen images, in seconds
- `hpa_fastai.train.processes`: Share one job between several GPUs or machines, one process for each
- `hpa_fastai.train.schedules`: Learning rates in steps, in cycles or on a plateau, beside fastai's own
- `hpa_fastai.versions`: Two pairs of packages that install beside each other and fail in the middle of your work
- `hpa_fastai.web`: Ask a server for one file, with an end to its size and to its time
- `hpa_fastai.workers`: Work in several processes or threads, with results in order"""

__version__ = "0.1.0"

from .versions import tell_clashes as _tell_clashes
_tell_clashes()

def __getattr__(name):
    "Every public name, imported on first use (PEP 562), so that `import hpa_fastai` and `--help` stay quick."
    if name.startswith('__') and name != '__all__': raise AttributeError(name)
    from importlib import import_module
    from importlib.util import find_spec
    if name == 'Predictor' and not (find_spec('torch') and find_spec('fastai')):
        # labels by NumPy and onnxruntime alone
        return import_module('hpa_fastai.runs.onnx').OnnxPredictor
    everything = import_module('hpa_fastai.all')
    if name == '__all__': return everything.__all__
    if name in everything.__all__: return getattr(everything, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__():
    from importlib import import_module
    return sorted([*globals(), *import_module('hpa_fastai.all').__all__])
