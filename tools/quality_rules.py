"""Fit the two rules of `data.quality` on simulated cells and write hpa_fastai/assets/quality.json.

    python tools/quality_rules.py [--fields 120] [--composed 200]

The rule for the order of the stains tells the true order of a field from the 23 others; that for the scale tells
fields from the same ones at half the size. They learn from fields as `simulate_field` draws them and
from images that `simulate.layers` composes. No real image is used. Three minutes on one core."""
import argparse
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpa_fastai.data.quality import ORDERS, order_features, scale_features, textures
from hpa_fastai.files import write_json
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_field
from hpa_fastai.simulate.layers import compose, draw_layers
from hpa_fastai.simulate.optics import Microscope

WIDE = Microscope(psf=(.08, .22), photons=(3, 600), marker_photons=(10, 600), black=(.005, .08), gamma=(.8, 1.5),
                  bright=(.3, 1.6), marker_bright=(.35, 1.6))

def field(labels, seed):
    "A simulated field at some scale near .32 µm per pixel, from one of three microscopes"
    um = .32*np.random.default_rng([*seed, 7]).uniform(.8, 1.25)
    return simulate_field(labels, 512, seed, um, site=[WIDE, 'train', 'test'][seed[1]%3]).image

def composed(n, seed=77):
    "Images composed from drawn layers, two from each field; those in which a stain is missing are left out"
    labels = np.random.default_rng(seed)
    for i in range((n + 1)//2):
        shown = [0, 25, *map(int, labels.choice(np.r_[1:25, 26:28], 6, replace=False))]
        layers = draw_layers(shown, 680, [seed, i], um=(.26, .40))
        for k in range(min(2, n - 2*i)):
            rng = np.random.default_rng([seed, i, k])
            img, _ = compose(layers, rng, 512, .32, rng.uniform(.2, 1))
            if (np.quantile(img[::4, ::4], .999, (0, 1)) > 12).all(): yield img

def _around(stain):
    "The light of a stain in the neighbourhood of each pixel"
    small = cv2.resize(stain, None, fx=.25, fy=.25, interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, None, 2), stain.shape[::-1])

def over_nuclei(img, rng):
    "The field as real ones look: cytoplasm above and below the nuclei, more so in yellow, which may be softer"
    red, green, blue, yellow = cv2.split(img.astype(np.float32))
    inside = cv2.GaussianBlur(blue, None, 3)
    inside = (inside/(np.quantile(inside[::4, ::4], .98) + 1)).clip(0, 1)
    grain = rng.normal(1, .1, yellow.shape).astype(np.float32)
    yellow += rng.uniform(0, .9)*inside*_around(yellow)*grain + rng.uniform(0, .15)*blue
    if (sigma := rng.uniform(0, 1)) > .3: yellow = cv2.GaussianBlur(yellow, None, sigma)
    red += rng.uniform(0, .35)*inside*_around(red)
    return np.dstack([red, green, blue, yellow]).clip(0, 255).astype(np.uint8)

def fit_order(x, l2=.03):
    "Weights that make the true order of the stains likely among all (fields, orders, features), the true one first"
    x = x - x[:, :1]
    spread = x.reshape(-1, x.shape[2]).std(0) + 1e-6
    z = x/spread
    def loss(w):
        scores = z@w
        total = logsumexp(scores, 1)
        gradient = np.einsum('nk,nkf->f', np.exp(scores - total[:, None]), z)/len(z)
        return total.mean() + l2*w@w/2, gradient + l2*w
    return minimize(loss, np.zeros(z.shape[2]), jac=True, method='L-BFGS-B').x/spread

def fit_scale(whole, half):
    "Weights and constant of the log odds that a field is at half its size"
    x, y = np.concatenate([whole, half]), np.repeat([0, 1], [len(whole), len(half)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=.01, class_weight='balanced')).fit(x, y)
    w = model[1].coef_[0]/model[0].scale_
    return w, float(model[1].intercept_[0] - w@model[0].mean_)

def halved(img): return cv2.resize(img, None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA)

def fit_rules(fields, others):
    "The rules as quality.json holds them, from simulated fields (512, 512, 4) and composed ones"
    orders, whole, half = [], [], []
    for i, img in enumerate(fields):
        real = over_nuclei(img, np.random.default_rng([5, i]))
        plain = textures(img)
        orders += [order_features(*plain), order_features(*textures(real))]
        whole.append(scale_features(*plain))
        half.append(scale_features(*textures(halved(real))))
    for img in others:
        plain = textures(img)
        orders.append(order_features(*plain))
        whole.append(scale_features(*plain))
        half.append(scale_features(*textures(halved(img))))
    w, constant = fit_scale(np.array(whole), np.array(half))
    return dict(order=fit_order(np.array(orders)).round(4).tolist(), scale=w.round(4).tolist(),
                scale_constant=round(constant, 4), fields=len(whole))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fields', type=int, default=120, help='as `simulate_field` draws them')
    parser.add_argument('--composed', type=int, default=200, help='as `simulate.layers` composes them')
    args = parser.parse_args()
    drawn = (field(o, [1, i]) for i, o in enumerate(draw_label_sets(300, 1)[:args.fields]))
    rules = fit_rules(drawn, composed(args.composed))
    write_json(Path(__file__).resolve().parent.parent/'hpa_fastai/assets/quality.json', rules)
