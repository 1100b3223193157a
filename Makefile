# The two commands to know: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data/images
WORK ?= build/base

.PHONY: demo test quality train-base evaluate clean

demo: $(VENV)/.run ## set up, then serve the app at http://127.0.0.1:7860
	$(BIN)/python app.py

test: $(VENV)/.test ## install what the tests need, then run them
	$(BIN)/python -m pytest

quality: $(VENV)/.test ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-base: $(VENV)/.test ## train the embedded base from the packs in DATA; resumable
	$(BIN)/python -m lora.train_base --data $(DATA) --work $(WORK)

evaluate: $(VENV)/.test ## measure the embedded base; results in evaluation/results
	for m in chest-xray ct brain-mri blood-smear; do \
	  $(BIN)/python -m evaluation fidelity --modality $$m --count 100 --cache $(WORK)/cache --data $(DATA) --out evaluation/results/fidelity-$$m.json || exit 1; done
	$(BIN)/python -m evaluation classify --tasks modality --count 200 --cache $(WORK)/cache --data $(DATA) --out evaluation/results/classify-modality.json
	$(BIN)/python -m evaluation classify --tasks blood-cell brain-tumour --count 64 --cache $(WORK)/cache --data $(DATA) --out evaluation/results/classify-classes.json
	$(BIN)/python -m evaluation speed --out evaluation/results/speed.json
	$(BIN)/python -m evaluation sheet --cache $(WORK)/cache --data $(DATA) --out evaluation/results/sheet.jpg
	$(BIN)/python -m evaluation table

$(VENV)/.run: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet -r requirements.txt --group test
	touch $@

clean:
	rm -rf build $(VENV)
