# The two commands to know: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data/images
WORK ?= build/base
NAMESPACE ?= ORG
ADAPTERS ?= nuclei covid-chest-xray

.PHONY: demo test quality train-base index train-adapters evaluate publish clean

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

index: $(VENV)/.test ## index of the training set, by which copies are found
	$(BIN)/python -m lora.memorisation --data $(DATA) --cache $(WORK)

train-adapters: $(VENV)/.test ## train the shipped adapters on the embedded base; resumable
	for name in $(ADAPTERS); do $(MAKE) --no-print-directory adapter-$$name || exit 1; done

TRAIN = $(BIN)/python -m lora.train --overwrite
adapter-nuclei:
	$(TRAIN) --data $(DATA)/nuclei_dsb2018 --out lora/nuclei --modality nuclei --contrast stretch \
	  --steps 1400 --batch 16 --ema-decay 0.996 --validate-every 200
adapter-covid-chest-xray:
	$(TRAIN) --data $(DATA)/cxr_covid --out lora/covid-chest-xray --modality chest-xray \
	  --steps 600 --batch 16 --ema-decay 0.995 --validate-every 100

evaluate: $(VENV)/.test ## measure the embedded base; results in evaluation/results
	for m in chest-xray ct brain-mri blood-smear; do \
	  $(BIN)/python -m evaluation fidelity --modality $$m --count 100 --cache $(WORK)/cache --data $(DATA) --out evaluation/results/fidelity-$$m.json || exit 1; done
	$(BIN)/python -m evaluation classify --tasks modality --count 200 --cache $(WORK)/cache --data $(DATA) --out evaluation/results/classify-modality.json
	$(BIN)/python -m evaluation classify --tasks blood-cell brain-tumour --count 64 --cache $(WORK)/cache --data $(DATA) --out evaluation/results/classify-classes.json
	$(BIN)/python -m evaluation speed --out evaluation/results/speed.json
	$(BIN)/python -m evaluation sheet --cache $(WORK)/cache --data $(DATA) --out evaluation/results/sheet.jpg
	$(BIN)/python -m evaluation adapters --cache $(WORK)/cache --data $(DATA) --out evaluation/results/adapters.json
	$(BIN)/python -m evaluation table

publish: $(VENV)/.run ## build what goes to the Hub in build/hub; uploads nothing
	$(BIN)/python -m hub_cards.publish --namespace $(NAMESPACE)

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
