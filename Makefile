# The commands of the lab; each is one line that calls the tool.
# `make` alone prints this help.

PYTHON ?= python3
# No recipe holds the name of the checkout's folder, which may hold anything: Python finds labkit in
# the current folder. -E: the caller's PYTHONPATH, PYTHONHOME and the like change nothing.
# exec: make sends SIGTERM to the shell alone, which would leave labkit and its container running.
LABKIT := exec $(PYTHON) -E -m labkit
# The shell reads the values from its environment, so that no value becomes a part of a command:
# $(call PASS,PORT,port) is `--port "$PORT"` where PORT has a value. make exports by itself what is
# typed and what the environment has.
PASS = $(if $(value $(1)),--$(2) "$$$(1)")
# These names count only where they are typed: some hosts set CUDA to the toolkit's folder.
TYPED = $(if $(filter command,$(origin $(1))),--$(2) "$$$(1)")
CHOICE := $(call PASS,RUNTIME,runtime) $(call PASS,FLAVOR,flavor) \
  $(call TYPED,CUDA,cuda) $(call TYPED,GPUS,gpus)
ADDRESS := $(call PASS,PORT,port) $(call PASS,BIND,bind)
WHERE := $(ADDRESS) $(call TYPED,MEMORY,memory)
BROUGHT := $(call TYPED,DATA,data) $(call TYPED,ENV_FILE,env-file)
NAMED := $(call PASS,IMAGE,image) $(call TYPED,EXTRAS,extras)
# Typed, it is the image that `make up` starts too; in the environment it may be anybody's.
ifeq ($(origin IMAGE),command line)
export LABKIT_IMAGE := $(IMAGE)
endif

# Messages name make's lines.
export LABKIT_MAKE := 1

.DEFAULT_GOAL := help
.PHONY: help up down status logs shell devices memory estimate doctor prove run check progress reset hub test lint house docs build lock bench clean

## Using the lab

up:  ## start the lab and print its URL
	@$(LABKIT) up $(CHOICE) $(WHERE) $(BROUGHT) $(if $(value OPEN),--open)

down:  ## stop the lab
	@$(LABKIT) down

status:  ## say whether it runs, and where
	@$(LABKIT) status

logs:  ## show the server's log
	@$(LABKIT) logs

shell:  ## open a shell inside the lab
	@$(LABKIT) shell $(CHOICE) $(BROUGHT)

devices:  ## list the devices the lab can use
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit devices

memory:  ## show where each device's memory is
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit memory

estimate:  ## say whether a step fits a GPU (STEP=work.py:make_step DEVICE="24 GiB")
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit estimate $(if $(value STEP),"$$STEP") $(call PASS,DEVICE,device)

doctor:  ## find out what keeps this host from running the lab (FIX=1 offers to mend it, DEEP=1 tries more)
	@$(LABKIT) doctor $(if $(value FIX),--fix) $(if $(value DEEP),--deep)

prove:  ## prove that the devices are correct and as fast as they should be (QUICK=1: in a minute)
	@$(LABKIT) exec $(CHOICE) -- labkit prove $(if $(value QUICK),--quick) $(PROVE)

run:  ## run labs headless and check every claim (LABS="tensors autograd")
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit run $(or $(LABS),--all)

check:  ## check your own answers to the exercises (LABS=tensors, or LABS=tensors.own_tensor)
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit check $(LABS)

progress:  ## show how far you are
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit progress

reset:  ## put fresh notebooks in place, keeping yours beside them (LABS=tensors)
	@$(LABKIT) exec $(CHOICE) $(BROUGHT) -- labkit reset $(or $(LABS),--all)

hub:  ## start JupyterHub for a class (STOP=1 stops it; PROGRESS=1, USAGE=1: who passed what, who holds what)
	@$(LABKIT) hub $(CHOICE) $(ADDRESS) $(if $(value STOP),--stop) $(if $(value PROGRESS),--progress) $(if $(value USAGE),--usage)

## Working on the lab

test:  ## run the tests, in the image or in the .venv (FAST=1 leaves out the slow ones)
	@$(LABKIT) test $(CHOICE) $(if $(value FAST),--fast) $(if $(value SIMULATED),--simulated) -- $(PYTEST)

lint:  ## check style, types and layers
	@$(LABKIT) lint $(CHOICE)

house:  ## count how many of labkit's files each of five paths runs through
	@$(LABKIT) test $(CHOICE) --house

docs:  ## build the documentation site in build/site
	@$(LABKIT) docs

build:  ## build the image (FLAVOR=cuda, IMAGE=registry/name:tag on any host), or the .venv
	@$(LABKIT) build $(CHOICE) $(NAMED)

lock:  ## resolve the newest versions into docker/locks/
	@$(LABKIT) lock

bench:  ## measure start-up times, the image's size, and how fast logs are explained
	@($(LABKIT) build --runtime local) && $(PYTHON) tests/bench/bench_launch.py && $(PYTHON) -m tests.bench.bench_explain

clean:  ## remove images, caches, .venv and state; never work/
	@$(LABKIT) clean

help:  ## print this
	@awk 'BEGIN { FS = ":.*## " } \
	  /^## / { printf "\n%s\n", substr($$0, 4) } \
	  /^[a-z]+: .*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@printf '\nVariables\n'
	@printf '  %-14s %s\n' \
	  'RUNTIME=' 'docker, podman, local or auto (auto: an engine where one answers, else .venv)' \
	  'FLAVOR=' 'cpu, cuda or auto (auto: what the host can run)' \
	  'CUDA=' "torch's CUDA build: cu130, cu126 or auto (auto: by the driver and the GPUs)" \
	  'GPUS=' 'the GPUs: all, indices or UUIDs (all; GPUS=0,1)' \
  'PORT=' 'the port (8888, or the next one that is free)' \
	  'BIND=' 'the address to listen on (127.0.0.1; 0.0.0.0 opens it to the network)' \
	  'MEMORY=' "the container's memory limit: 16g, off or auto (auto: most of the machine's)" \
	  'DATA=' 'a folder of yours that the lab may read, at /data (local: work/data)' \
	  'ENV_FILE=' 'a file of lines NAME=VALUE for your programs in the lab (HF_TOKEN=...)' \
	  'OPEN=1' 'for up: open the URL in the browser' \
	  'LABKIT_WORKSPACE=' 'your files in place of work/' \
	  'EXTRAS=' 'for build: packages to add, as names or a file of requirements (none: no more)' \
	  'IMAGE=' 'the name of the image (labkit:cpu, labkit:cu130, ...)' \
	  'STEP=' 'for estimate: the file in work/ and the function that makes a step (train.py:make_step)' \
	  'DEVICE=' 'for estimate: what it is to fit ("24 GiB", H100, cuda:0)' \
	  'LABS=' 'labs for run, check and reset, by name ("tensors autograd")' \
	  'FAST=1' 'for test: 2 to 4 minutes: no compiler, container or browser, no gate of all labs' \
	  'SIMULATED=1' 'for test: those for GPUs, on simulated ones, in .venv-simulated' \
	  'PYTEST=' 'for test: options of pytest ("-k ports")' \
	  'STOP=1' 'for hub: stop it (PROGRESS=1: what each learner has passed; USAGE=1: what each holds)' \
	  'QUICK=1' 'for prove: no torch.compile, no labs' \
	  'PROVE=' 'for prove: options of labkit prove ("--seconds 300 --device cuda:1")' \
	  'FIX=1, DEEP=1' 'for doctor: offer to mend what it finds; also start containers and compile' \
	  'PYTHON=' 'the Python to use (python3; 3.10 or newer)'
