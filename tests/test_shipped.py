"The network that ships with the package: small, complete, and as good on real images as its card says."
from pathlib import Path
from runpy import run_path

import numpy as np, pytest, torch

from hpa_fastai.files import read_json
from hpa_fastai.labels import encode_targets, LABELS, read_labels
from hpa_fastai.images.samples import find_samples, open_rgby
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.shipped import SHIPPED
from hpa_fastai.train.metrics import average_precision_per_class

torch.set_num_threads(1)
TOOL = Path(__file__).resolve().parent.parent/'tools/simulated_network.py'

def test_small_and_complete():
    files = {o.name: o.stat().st_size for o in (SHIPPED/'simulated').rglob('*') if o.is_file()}
    assert sum(files.values()) < 12_000_000
    needed = {'model.json', 'model.safetensors', 'thresholds.json', 'trust.json', 'conformal.json', 'card.md'}
    assert needed <= set(files)
    card = (SHIPPED/'simulated/card.md').read_text(encoding='utf-8')
    assert all(f'| {o} |' in card for o in LABELS)

def test_made_by_the_command():
    "The tool, as it is now, makes these networks, and the card names a command for each"
    made, card = read_json(SHIPPED/'simulated/made.json'), (SHIPPED/'simulated/card.md').read_text(encoding='utf-8')
    tool, model = run_path(TOOL), read_json(SHIPPED/'simulated/model.json')['model']
    assert model['channels'][0] == tool['WIDTH']
    wanted = {f'fold{k}': (seed, steps) for k, (seed, steps) in enumerate(tool['SHIPPED'])}
    assert set(made) == set(wanted)
    for fold, (seed, steps) in wanted.items():
        assert f'--steps {steps} ' in made[fold]['command'] and made[fold]['command'].endswith(f'--seed {seed}')
        assert f"| {fold} | `{made[fold]['command']}` |" in card

def test_made_again(tmp_path):
    "The command that makes it, in miniature and into an empty folder: what it writes can be opened"
    tool = run_path(TOOL)
    tool['draw_file'].__globals__['PER_FILE'] = 4   # fields in a file, in place of 128
    files = [tool['draw_file'](tmp_path, k) for k in range(2)]
    drawn = files[0].read_bytes()
    files[0].unlink()
    assert tool['draw_file'](tmp_path, 0).read_bytes() == drawn
    model, hours = tool['train'](files, tmp_path, 2, 4, .003, 0, 0, 'cpu')
    tool['save'](model, tmp_path/'made', 0, dict(hours=hours))
    predictor = Predictor.load(tmp_path/'made')
    probs = predictor.predict_probs([np.full((160, 160, 4), 60, np.uint8)], um=.34)
    assert probs.shape == (1, 28)

def test_mix_styles():
    "Contents stay, means and deviations are another image's in part; nothing changes outside of training"
    torch.manual_seed(0)
    mix, x = run_path(TOOL)['mix_styles'], torch.randn(8, 3, 16, 16)*torch.rand(8, 3, 1, 1) + torch.randn(8, 3, 1, 1)
    layer = torch.nn.Identity()
    mixed = mix(layer, (), x, p=1, alpha=1)
    def plain(a): return (a - a.mean((2, 3), keepdim=True))/a.std((2, 3), keepdim=True)
    torch.testing.assert_close(plain(mixed), plain(x), atol=1e-3, rtol=1e-3)
    means = x.mean((2, 3))
    assert (mixed.mean((2, 3)) - means).abs().max() > .01
    assert (mixed.mean((2, 3)) <= means.amax(0) + 1e-4).all() and (mixed.mean((2, 3)) >= means.amin(0) - 1e-4).all()
    assert mix(layer.eval(), (), x, p=1) is x

def test_real_fields(shared):
    "Ranking and first labels, with one view; the card's figures are those of four"
    folder = shared/'data/images/rgby_fields'
    if not folder.exists(): pytest.skip(f'no {folder}')
    df, samples = read_labels(folder/'train.csv'), find_samples(folder)
    df = df[df.Id.isin(list(samples))]
    y, predictor = encode_targets(df.Target).astype(int), Predictor.load('simulated')
    images = [open_rgby(samples[o]) for o in df.Id]
    probs = np.concatenate([predictor.predict_probs(images[i:i+9], n=1, um=.32) for i in range(0, len(images), 9)])
    first = np.take_along_axis(y, np.argsort(-probs, 1), 1)
    assert average_precision_per_class(probs, y)[y.sum(0) >= 3].mean() > .46
    assert first[:, 0].mean() > .42 and first[:, :3].any(1).mean() > .76
