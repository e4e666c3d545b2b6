# make demo   the main job on simulated data: from a Kaggle-style folder to a checked submission.csv
# make test   everything that is checked before a change is accepted
# make test-kaggle, test-colab, test-oldest
#             tests and tutorials with the versions of Kaggle's image, of Colab's, and with the lowest that are allowed
#             (constraints/NAME.txt); needs Python 3.12, 3.13 and 3.10, or say which to take: PYTHON=python3.12
# make test-app  the pages in a real browser; needs a Chromium, which it installs where apt-get is allowed to
# make docs   what the documentation is built from (the site itself is built by a GitHub workflow, with Quarto)
# Each makes the virtual environment and installs what it needs, once. Needs Python 3.10 or later and make, no more.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY  := $(VENV)/.installed
TOO_OLD = Python 3.10 or later is needed, this is %s; say which to take: make PYTHON=python3.11
FIND_CHROMIUM = { test -n "$$CHROMIUM" || command -v chromium || command -v chromium-browser || command -v google-chrome; }
export MPLBACKEND ?= agg
export PYTHONWARNINGS ?= ignore::FutureWarning,ignore::DeprecationWarning

IMAGES := kaggle colab oldest
PYTHON_kaggle := python3.12
PYTHON_colab  := python3.13
PYTHON_oldest := python3.10

.PHONY: demo test test-app docs readme clean $(IMAGES:%=test-%)

demo: $(READY)
	$(BIN)/hpa-simulate --out data/demo --n 3200 --test 200 --size 128 --balanced
	$(BIN)/hpa-train --data data/demo --out runs/demo --recipe sprint
	$(BIN)/hpa-check runs/demo/submission.csv --data data/demo
	@echo
	@echo "The submission:            runs/demo/submission.csv"
	@echo "What it is worth:          runs/demo/report.html, to open in a browser  (numbers: runs/demo/scores.json)"
	@echo "Label your own images:     $(BIN)/hpa-predict --run runs/demo --images DIR --out labels.csv"

test: export OMP_NUM_THREADS := 1
test: $(READY)
	$(BIN)/nbdev-test --n-workers 2 --timing
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile

# What the image carries is installed first; then, as on Kaggle, a wheel that was built with the image's setuptools.
$(IMAGES:%=test-%): export OMP_NUM_THREADS := 1
$(IMAGES:%=test-%): test-%: .venv-%/.installed
	rm -rf .venv-$*/wheels
	.venv-$*/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir .venv-$*/wheels .
	.venv-$*/bin/python -m pip install --quiet --constraint constraints/$*.txt .venv-$*/wheels/*.whl
	.venv-$*/bin/python -m pip install --quiet --no-deps --force-reinstall .venv-$*/wheels/*.whl
	.venv-$*/bin/python -c "from hpa_fastai.versions import clashes; assert not clashes(), clashes()"
	.venv-$*/bin/python -m pytest tests --numprocesses 2 --dist loadfile
	.venv-$*/bin/jupyter nbconvert --execute --to notebook --output-dir .venv-$*/tutorials nbs/tutorials/*.ipynb

TESTERS = pytest pytest-xdist 'hypothesis>=6' psutil nbconvert ipykernel wheel
.venv-%/.installed: constraints/%.txt
	$(if $(filter command line,$(origin PYTHON)),$(PYTHON),$(PYTHON_$*)) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement constraints/$*.txt --constraint constraints/$*.txt $(TESTERS)
	@touch $@

test-app: export OMP_NUM_THREADS := 1
test-app: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,app]" playwright
	@$(FIND_CHROMIUM) >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || \
	    echo "No Chromium, and apt-get can't install one: install it (or run $(BIN)/playwright install chromium), or name it in CHROMIUM"
	$(BIN)/python -m pytest tests/test_app.py $(wildcard tests/test_report_page.py) -rs

docs: $(READY) readme
	$(BIN)/nbdev-proc-nbs

readme: $(READY)
	$(BIN)/python tools/tutorials.py
	$(BIN)/python tools/api.py
	$(BIN)/python tools/readme.py

$(READY): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else '$(TOO_OLD)' % sys.version.split()[0])"
	@echo "Installing into $(VENV) (a few minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $(READY)

clean:
	rm -rf _docs _proc build dist .pytest_cache .hypothesis
