# The two commands to know: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data/images
VOLUMES ?= ../shared/data/volumes/msd_hippocampus
WORK ?= build/base
NAMESPACE ?= ORG
ADAPTERS ?= chest-xray ct brain-mri blood-smear nuclei covid-chest-xray

.PHONY: demo test quality train-base index train-adapters evaluate evaluate-look evaluate-use evaluate-adapters evaluate-trust evaluate-volumes \
  train-volumes publish clean

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

train-volumes: $(VENV)/.test ## train the volume model from the pack in VOLUMES; resumable
	$(BIN)/python -m lora.train_volumes --data $(VOLUMES) --work build/volumes --out pipeline/volume

index: $(VENV)/.test ## index of the training set, by which copies are found
	$(BIN)/python -m lora.memorisation --data $(DATA) --cache $(WORK)

train-adapters: $(VENV)/.test ## train the shipped adapters on the embedded base; resumable
	for name in $(ADAPTERS); do $(MAKE) --no-print-directory adapter-$$name || exit 1; done

TRAIN = $(BIN)/python -m lora.train --overwrite --attribution-column source
# The base knows these: its images are only matched, as a set, with the training images.
MATCH = --steps 0 --match-learning-rate 2e-4 --rank 2 --most 1000 --verdict-count 30
DISTIL = --steps 400 --batch 4 --ema-decay 0.98 --validate-every 200
adapter-chest-xray:
	$(TRAIN) --data $(DATA)/cxr_kermany $(DATA)/cxr_nih $(DATA)/cxr_shenzhen_tb --out lora/chest-xray \
	  --modality chest-xray --match-steps 75 $(MATCH)
# Shipped are its weights after 90 of the steps, at full strength.
adapter-ct:
	$(TRAIN) --data $(DATA)/ct_lung_iqothnccd $(DATA)/ct_chest_luad $(DATA)/ct_head_hemorrhage --out lora/ct --modality ct \
	  --match-steps 180 $(MATCH) --match-learning-rate 5e-4 --rank 4 --strength 0.7
adapter-brain-mri:
	$(TRAIN) --data $(DATA)/mri_brain_tumor --out lora/brain-mri --modality brain-mri --match-steps 60 $(MATCH)
# The base guided too much draws nearly all malaria cells pink; what was learnt of that is kept while its images are matched.
BLOOD = $(foreach pack,blood_pbc blood_malaria blood_rbc_chula blood_bccd,$(DATA)/$(pack))
adapter-blood-smear:
	$(TRAIN) --data $(BLOOD) --out $(WORK)/blood-smear --modality blood-smear --rank 4 --most 1000 \
	  --distil-guidance 1 $(DISTIL) --learning-rate 1e-3 --verdict-count 0
	$(TRAIN) --data $(BLOOD) --init $(WORK)/blood-smear --out lora/blood-smear --modality blood-smear \
	  --distil-guidance 3 --match-steps 64 $(MATCH) --rank 4
# Learnt at rank 8, cut down to 4, then to 2, and taught a little more each time: a quarter of the file.
adapter-nuclei:
	$(TRAIN) --data $(DATA)/nuclei_dsb2018 --out $(WORK)/nuclei --modality nuclei --contrast stretch \
	  --steps 1400 --batch 16 --ema-decay 0.996 --validate-every 200 --verdict-count 0
	$(TRAIN) --data $(DATA)/nuclei_dsb2018 --init $(WORK)/nuclei --out $(WORK)/cut/nuclei --modality nuclei --contrast stretch \
	  --rank 4 --steps 200 --batch 16 --learning-rate 3e-4 --ema-decay 0.98 --validate-every 100 --verdict-count 0
	$(TRAIN) --data $(DATA)/nuclei_dsb2018 --init $(WORK)/cut/nuclei --out lora/nuclei --modality nuclei --contrast stretch \
	  --rank 2 --steps 160 --batch 16 --learning-rate 5e-4 --ema-decay 0.98 --validate-every 80 --verdict-count 30
# What is learnt goes onto the base at 0.7, is cut down to rank 4 and matched, and taught to draw as it does at less guidance.
adapter-covid-chest-xray:
	$(TRAIN) --data $(DATA)/cxr_covid --out $(WORK)/covid-chest-xray --modality chest-xray \
	  --steps 1200 --batch 16 --ema-decay 0.998 --validate-every 200 --noise-shift 0.8 --strength 0.7 --verdict-count 40
	$(TRAIN) --data $(DATA)/cxr_covid --init $(WORK)/covid-chest-xray --out $(WORK)/matched/covid-chest-xray --modality chest-xray \
	  --rank 4 --steps 0 --match-steps 130 --match-learning-rate 2e-4 --verdict-count 0
	$(TRAIN) --data $(DATA)/cxr_covid --init $(WORK)/matched/covid-chest-xray --out lora/covid-chest-xray --modality chest-xray \
	  --rank 4 --distil-guidance 1.4 $(DISTIL) --learning-rate 5e-4 --verdict-count 30

EVALUATE = $(BIN)/python -m evaluation
RESULTS = evaluation/results
UTILITY = --size 48 --count 160 --curve 80 $(KEPT)
KEPT = --cache $(WORK)/cache --data $(DATA)
evaluate: $(VENV)/.test ## measure the embedded base; results and report in evaluation/results; resumable
	$(EVALUATE) speed --out $(RESULTS)/speed.json
	OMP_NUM_THREADS=$$($(BIN)/python -c 'import os; print(max(1, os.cpu_count() // 2))') $(MAKE) -j2 evaluate-look evaluate-use
	$(EVALUATE) report --results $(RESULTS) --out build/report/report.html
	rm -f $(RESULTS)/report.html
	find build/report/report.html -size -1464k -exec cp {} $(RESULTS)/report.html \; # 1.5 MB: what a repository bears
	$(EVALUATE) table

# Two lanes of about equal length, a core each; within one, what is made or trained for the one is kept for the next.
evaluate-look:
	$(EVALUATE) sheet $(KEPT) --out $(RESULTS)/sheet.webp
	$(EVALUATE) faithfulness --count 48 $(KEPT) --out $(RESULTS)/faithfulness.json
	for m in chest-xray ct brain-mri blood-smear; do \
	  $(EVALUATE) fidelity --modality $$m --count 100 --networks efficientnet-lite0 own --sheet \
	    $(KEPT) --out $(RESULTS)/fidelity-$$m.json || exit 1; done
	$(EVALUATE) privacy --real $(DATA)/cxr_kermany --modality chest-xray --count 100 --strengths 0.3 0.6 0.9 \
	  --cache $(WORK)/cache --out $(RESULTS)/privacy.json
	$(EVALUATE) utility --domains chest-xray $(UTILITY) --out $(RESULTS)/utility-chest-xray.json

evaluate-use:
	$(EVALUATE) utility --domains brain-tumour blood-cell lung-ct $(UTILITY) --out $(RESULTS)/utility.json
	$(EVALUATE) explain $(KEPT) --sheets build/explain --out $(RESULTS)/explain.json

evaluate-trust: $(VENV)/.test ## watermark, burned-in text, hostile files, kills, replays, the server under load
	$(EVALUATE) watermark --count 500 --generated 60 $(KEPT) --out $(RESULTS)/watermark.json
	$(EVALUATE) burned-in --data $(DATA) --out $(RESULTS)/burned-in.json
	$(EVALUATE) hostile --count 2000 --out $(RESULTS)/hostile.json
	$(EVALUATE) survive --count 2000 --kills 20 --out $(RESULTS)/survive.json
	$(EVALUATE) replays --out $(RESULTS)/replays.json
	$(EVALUATE) load --clients 30 --seconds 600 --out $(RESULTS)/load.json

evaluate-volumes: $(VENV)/.test ## the volume model beside real volumes
	$(EVALUATE) volumes --data $(VOLUMES) --count 120 --seeds 0 1 2 3 4 --cache $(WORK)/cache --out $(RESULTS)/volumes.json

evaluate-adapters: $(VENV)/.test ## the shipped adapters beside the bare base
	$(EVALUATE) adapters --networks efficientnet-lite0 own $(KEPT) --out $(RESULTS)/adapters.json
	$(EVALUATE) table

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
