# The front door. `make` lists what there is; every target is a line or two you could have typed.
PRESET ?= release
BUILD  := build/$(PRESET)
PYTHON := .venv/bin/python
# As in .venv (tools/dev/install_deps.sh).
PACKAGES := $(CURDIR)/protocol/python:$(CURDIR)/tools/lab
CODE    = $(shell git ls-files '*.h' '*.cc' '*.c' '*.cu')
GPU    := $(or $(wildcard /dev/nvidia0),$(shell command -v nvidia-smi))

# Else each process compiles all of torch's modules again: tools/dev/install_deps.sh leaves them uncompiled.
unexport PYTHONDONTWRITEBYTECODE

# The demo's own knobs: make demo PROMPT=file.txt POLICY=dynamickv CAPACITY=256 PROFILE=auto BACKEND=cuda
PROMPT ?=
POLICY ?=
CAPACITY ?=
PROFILE ?=
BACKEND ?=

# Kernels are compiled for the GPU of this machine; without one, for the oldest. For all of them: make ptxas, install,
# gpu-bundle, wheel-cuda.
CUDA_ARCHITECTURES ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u),80)

comma := ,
space := $(comma) $(comma)
space := $(subst $(comma),,$(space))

# What is compiled, and how a build folder is configured that is not there yet: programs and libdkv, without
# tests and benchmarks. A folder that has them keeps them.
TARGETS   = programs
LEAN      = $(if $(wildcard $(BUILD)/CMakeCache.txt),,-DDKV_TESTS=OFF -DDKV_BENCH=OFF)
CUDA      = $(CUDA_HERE)
CUDA_HERE = -DDKV_CUDA=AUTO '-DDKV_CUDA_ARCHITECTURES=$(subst $(space),;,$(strip $(CUDA_ARCHITECTURES)))'
CONFIGURE = cmake --preset $(PRESET) --log-level=WARNING

# The test programs of what reads files, and messages to dkvd.
FOREIGN := container_test formats_test message_fuzz_test dkv_reader_fuzz

# What nvcc made of the kernels, in a folder of its own: for every architecture.
PTXAS = cmake --preset release -B build/ptxas --log-level=WARNING -DDKV_CUDA=ON && cmake --build build/ptxas

# The end-to-end tests' surroundings, for pytest started by hand.
E2E = OMP_WAIT_POLICY=PASSIVE DKV_REQUIRE_E2E=1 DKV_BIN_DIR=$(CURDIR)/$(BUILD)/bin PYTHONPATH=$(PACKAGES) \
	DKV_LIBRARY=$(CURDIR)/$(BUILD)/lib/libdkv.so $(PYTHON) -m pytest -q -p no:cacheprovider --tb=short -rf

# The same with vLLM's environment.
VLLM = OMP_WAIT_POLICY=PASSIVE DKV_REQUIRE_E2E=1 DKV_BIN_DIR=$(CURDIR)/$(BUILD)/bin \
	DKV_LIBRARY=$(CURDIR)/$(BUILD)/lib/libdkv.so .venv-vllm/bin/python
VLLM_TEST = $(VLLM) -m pytest -q -p no:cacheprovider --tb=short -rf

.DEFAULT_GOAL := help
.PHONY: help deps venv build demo test test-unit test-foreign test-shipped test-long test-emulated test-asan test-tsan mutants test-compat \
	test-architectures test-formats test-ray test-vllm test-llama bench-vllm bench-vllm-needles overhead-vllm chaos load ptxas ptxas-accept gpu-test gpu-bundle fuzz soak bench bench-compact overhead \
	bench-decode bench-quality eval eval-quick golden lint format tidy schema-check install wheel wheel-cuda test-wheel deb test-deb image \
	test-image release clean

help:         ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# It compiles kernels for a GPU where there is one, or when one is asked for.
demo: CUDA = $(if $(GPU)$(BACKEND),$(CUDA_HERE),$(if $(LEAN),-DDKV_CUDA=OFF))
demo: TARGETS = programs $(if $(BACKEND),demo_backends)
demo: build   ## a real model's cache compressed by a separate dkvd (PROMPT= POLICY= CAPACITY= PROFILE= BACKEND=cuda)
	$(PYTHON) tools/demo/demo.py --bin $(BUILD)/bin --out build/demo \
		$(if $(PROMPT),--prompt '$(PROMPT)') $(if $(POLICY),--policy '$(POLICY)') \
		$(if $(CAPACITY),--capacity '$(CAPACITY)') $(if $(PROFILE),--profile '$(PROFILE)') \
		$(if $(BACKEND),--backend '$(BACKEND)')

test: deps-debian ## before every merge: what reads files and messages under sanitizers; then every test of what is shipped
	$(MAKE) --no-print-directory -j2 venv test-foreign  # pip has one thread, which the compilers leave room for.
	$(MAKE) --no-print-directory test-shipped

deps: $(if $(GPU)$(BACKEND),deps-cuda) ## what building and the demo need: Debian packages, .venv (a GPU's compiler where there is a GPU)
	tools/dev/install_deps.sh build python

# deps-test, deps-cuda, deps-lint, deps-bench, deps-wheel: what those need beyond that.
deps-%:
	tools/dev/install_deps.sh $*

venv:
	tools/dev/install_deps.sh python cuda test

# What a user runs is linked into .venv; libdkv is then found beside it. A sanitizer's cannot be loaded into Python.
build: deps   ## dkv and dkvd, which are then in .venv/bin, and libdkv (PRESET=release|dev|asan|tsan TARGETS=all)
	$(CONFIGURE) $(LEAN) $(CUDA)
	cmake --build --preset $(PRESET) --target $(TARGETS)
	@case $(PRESET) in release|dev) ln -sf ../../$(BUILD)/bin/dkv ../../$(BUILD)/bin/dkvd .venv/bin/;; esac

test-unit: deps deps-test deps-cuda ## the unit tests alone
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target unit_tests
	tools/dev/test.sh $(PRESET) --label-exclude e2e

test-shipped: deps deps-test deps-cuda ## the unit tests; then real processes: dkvd, dkv, engines, a real model
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target unit_tests end_to_end
	tools/dev/test.sh $(PRESET) --exclude-regex '^(emulated, whole|long):'

test-long: deps deps-test deps-cuda ## Python's tests that take too long for make test, and a small evaluation
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target end_to_end
	tools/dev/test.sh $(PRESET) --tests-regex '^long:'

test-emulated: deps deps-test deps-cuda ## what a GPU would run, on the emulation: kernels, the emulation itself, libdkv_cuda, all of it end to end
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target end_to_end cuda_emu_test sdk_cuda_test
	tools/dev/test.sh $(PRESET) --tests-regex '^(kernels_test|cuda_emu_test|sdk_cuda_test|emulated|emulated, whole)(:| )'

test-foreign: deps-debian ## what reads files and messages to dkvd, by clang's sanitizers and libFuzzer; a fifth of the messages
	cmake --preset fuzz --log-level=WARNING
	cmake --build --preset fuzz --target $(FOREIGN)
	DKV_FUZZ_MESSAGES=20000 tools/dev/test.sh fuzz

test-asan: deps deps-test deps-cuda ## unit tests, and real processes, under the address and undefined-behaviour sanitizers
	cmake --preset asan --log-level=WARNING -DDKV_CUDA=AUTO
	cmake --build --preset asan --target unit_tests end_to_end
	tools/dev/test.sh asan

test-tsan: deps deps-test deps-cuda ## unit tests, and real processes, under the thread sanitizer
	cmake --preset tsan --log-level=WARNING
	cmake --build --preset tsan --target unit_tests end_to_end
	tools/dev/test.sh tsan

mutants: deps deps-test deps-cuda ## kernels with one thing wrong in each: the emulation must catch every one (MUTANTS='words of names')
	tools/cuda_emu/mutants/mutants.py $(MUTANTS)

test-compat: build ## the adapter against transformers 4.57, in an environment of its own
	tools/dev/compat.sh $(BUILD)

test-architectures: build ## dkv.hf with a tiny model of every architecture; docs/MODELS.md says what was seen
	$(E2E) --page docs/MODELS.md tests/architectures

test-formats: build ## saved caches through a real llama.cpp and mlx-lm, which are installed on first use (a minute)
	tools/formats/install.sh
	$(E2E) tools/formats

test-ray: build ## dkv-lab ray on a real local cluster; Ray is installed on first use (.venv-ray)
	tools/dev/engines_venv.sh .venv-ray tools/ray/requirements.txt
	DKV_BIN_DIR=$(CURDIR)/$(BUILD)/bin PYTHONPATH=$(PACKAGES) .venv-ray/bin/python -m pytest -q -p no:cacheprovider --tb=short -rf tests/ray

test-vllm: build ## a real, unpatched vLLM on the CPU with a real dkvd; vLLM is installed on first use (.venv-vllm, 3.4 GB)
	tools/vllm/install.sh
	$(VLLM_TEST) tests/vllm

# The other three of docs/LLAMA.md need a newer llama.cpp.
PAGE_OF_SLOTS = test_the_pages_other_three_commands_compact_a_slot
test-llama: build ## real, unpatched llama.cpps of two versions: their servers, live and by their slots, and libdkv_llama attached; installed on first use
	tools/llama/install.sh
	tools/llama/attach.sh
	$(E2E) tests/llama
	DKV_LLAMA_PYTHON=$(CURDIR)/.venv-llama/bin/python $(E2E) $(addprefix tests/llama/,test_compact_slot.py test_page.py::$(PAGE_OF_SLOTS) test_watch_slots.py)
	DKV_ATTACH_PYTHON=$(CURDIR)/.venv-attach/bin/python DKV_LLAMA_PYTHON=$(CURDIR)/.venv-attach/bin/python \
		$(E2E) $(addprefix tests/llama/,test_attach.py test_killed.py test_live_server.py test_sliding.py test_steering.py)

bench-vllm: build ## the same requests through vLLM with dkv off and on: running at once, preemptions, requests per second
	tools/vllm/install.sh
	$(VLLM) tools/bench/vllm_pool.py $(BENCH_VLLM)

bench-vllm-needles: build ## facts hidden in 1,024 tokens: found through vLLM and through transformers, on the same token ids
	tools/vllm/install.sh
	$(VLLM) tools/bench/vllm_needles.py $(BENCH_VLLM)

overhead-vllm: build ## what dkv costs a request that has vLLM for itself, pair by pair (OVERHEAD_VLLM='--pairs 10')
	tools/vllm/install.sh
	$(VLLM) tools/bench/vllm_overhead.py $(OVERHEAD_VLLM)

ptxas: deps deps-test deps-cuda ## what nvcc made of every kernel, for every architecture, against the table under version control
	$(PTXAS) --target ptxas

ptxas-accept: deps deps-test deps-cuda ## the table is what is built now: look at its difference before you commit it
	$(PTXAS) --target ptxas-accept

gpu-test:     ## on a machine with a GPU, without a network: every kernel, IPC, compute-sanitizer, bandwidth; JSON (GPU_TEST=--emulated: without a GPU)
	python3 tools/gpu/gpu_test.py --out build/gpu-test.json $(GPU_TEST)

gpu-bundle: deps deps-test deps-cuda ## build/gpu-bundle.tar: what gpu-test runs, for a GPU machine without compilers
	tools/gpu/bundle.sh

fuzz: deps deps-test ## foreign bytes for every reader of files, under sanitizers (SECONDS=30 each); every bit of small ones flipped
	tools/fuzz/run.sh $(or $(SECONDS),30)
	cmake --build --preset fuzz --target formats_test
	DKV_EVERY_BIT=1 build/fuzz/bin/formats_test --test-case='*flipped bit*'

# What tools/chaos starts beside dkvd and dkv.
chaos: TARGETS = programs dkv_c_engine dkv_chaos_through
chaos: deps deps-test ## 2,000 faults at every state of a session, with real processes: docs/RELIABILITY.md (CHAOS='--faults 100 --seed 7'), also beside vLLM where it is installed
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target $(TARGETS)
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$(PACKAGES) $(PYTHON) tools/chaos/chaos.py --bin $(BUILD)/bin \
		$(or $(CHAOS),--faults 2000 --hf 16 $(if $(wildcard .venv-vllm/.installed),--vllm 16))

load: TARGETS = programs dkv_c_engine
load: deps deps-test ## 64 engines with 8 prompts each, then more prompts than dkvd takes (LOAD='--minutes 60')
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target $(TARGETS)
	$(PYTHON) tools/bench/load.py --bin $(BUILD)/bin $(LOAD)

soak: build deps-test chaos ## long: many sessions, kills and restarts (SOAK_MINUTES=10), a million messages, foreign bytes
	$(PYTHON) tools/soak/soak.py --bin $(BUILD)/bin --minutes $${SOAK_MINUTES:-10}
	DKV_KILLS=$${DKV_KILLS:-200} DKV_SEED=$${DKV_SEED:-$$(date +%s)} $(E2E) -s tests/python/test_killed.py
	tools/vllm/install.sh
	DKV_KILLS=$${DKV_KILLS:-200} DKV_SEED=$${DKV_SEED:-$$(date +%s)} $(VLLM_TEST) -s tests/vllm/test_server.py
	cmake --preset fuzz --log-level=WARNING
	cmake --build --preset fuzz --target message_fuzz_test
	DKV_FUZZ_SEED=$${DKV_FUZZ_SEED:-$$(date +%s)} DKV_FUZZ_MESSAGES=$${DKV_FUZZ_MESSAGES:-1000000} build/fuzz/bin/message_fuzz_test
	tools/fuzz/run.sh 600

bench: deps deps-bench ## every op: GB/s, ratio to this machine's memory bandwidth and to torch
	$(CONFIGURE) $(LEAN) -DDKV_BENCH=ON $(CUDA)
	cmake --build --preset $(PRESET) --target dkv_bench
	$(PYTHON) tools/bench/run.py --binary $(BUILD)/bin/dkv_bench

bench-compact: deps deps-bench ## a 2 GB cache compacted by every policy, next to reading it (BENCH_DIR=/tmp)
	$(CONFIGURE) $(LEAN) -DDKV_BENCH=ON $(CUDA)
	cmake --build --preset $(PRESET) --target dkv_compact_bench
	mkdir -p $(or $(BENCH_DIR),/tmp)/dkv-bench
	$(BUILD)/bin/dkv_compact_bench $(or $(BENCH_DIR),/tmp)/dkv-bench

overhead: build deps-test ## what dkv costs a real prefill of 4,096 tokens, pair by pair: of transformers, then of llama.cpp
	$(PYTHON) tools/bench/overhead.py --bin $(BUILD)/bin
	$(PYTHON) tools/bench/llama_overhead.py --bin $(BUILD)/bin

bench-decode: build ## ms per token of unequal heads against equal ones, at equal bytes
	$(PYTHON) tools/bench/decode.py --bin $(BUILD)/bin

eval-quick: build ## a small evaluation through a real dkvd that must come out as expected (minutes)
	OMP_WAIT_POLICY=PASSIVE DKV_BIN_DIR=$(BUILD)/bin DKV_LIBRARY=$(BUILD)/lib/libdkv.so PYTHONPATH=$(PACKAGES) \
		$(PYTHON) -m dkv_lab quick -o build/eval-quick

eval: build   ## every policy on a model, resumable, hours (MODEL=smollm2 EVAL='--needles 100 …')
	OMP_WAIT_POLICY=PASSIVE $(BUILD)/bin/dkv eval $(or $(MODEL),smollm2) -o build/eval/$(notdir $(or $(MODEL),smollm2)).csv \
		$(or $(EVAL),--needles 100 --texts 48 --ruler 40 --grid 1024$(comma)2048$(comma)4096:0.1$(comma)0.3$(comma)0.5$(comma)0.7$(comma)0.9)
	$(BUILD)/bin/dkv eval figures build/eval/$(notdir $(or $(MODEL),smollm2)).csv -o build/eval/figures

bench-quality: build ## kvpress's own presses on the evaluation's prompts (QUALITY='--ruler 48 --question hidden'); kvpress is installed on first use
	tools/dev/engines_venv.sh .venv-kvpress tools/kvpress/requirements.txt
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$(PACKAGES) .venv-kvpress/bin/python tools/kvpress/quality.py -o build/eval/kvpress.csv $(QUALITY)

golden: deps deps-test ## dynamickv-ref against recorded outcomes (FILE=one.json)
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target dkv_golden_check
	tools/golden/check $(or $(FILE),tests/data/golden/*.json)

lint: deps deps-lint deps-bench ## formatting, the shape of the tree, clang-tidy
	clang-format --dry-run --Werror $(CODE)
	python3 tools/tidy/tidy.py
	cmake --preset dev -B build/lint --log-level=WARNING -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
		-DDKV_TESTS=ON -DDKV_BENCH=ON
	cmake --build build/lint --target dkv_schema_generated
	run-clang-tidy -quiet -p build/lint '(cli|kernels|protocol|sidecar|tests|tools)/.*\.cc$$'

format:       ## rewrite the code in the house format
	clang-format -i $(CODE)

tidy:         ## the shape of the tree: layers, lengths, mirrored kernels
	python3 tools/tidy/tidy.py

schema-check: ## the wire schema still speaks to every released version
	tools/dev/schema_check.sh

install: CUDA = -DDKV_CUDA=AUTO -UDKV_CUDA_ARCHITECTURES
install: build ## programs, libdkv and the header under PREFIX (/usr/local)
	cmake --install $(BUILD) --prefix $(or $(PREFIX),/usr/local)

wheel: deps-build deps-wheel ## dist/dkv-….whl: the package, dkv, dkvd, libdkv and what they need, for pip
	tools/dev/wheel.sh cpu

wheel-cuda: deps-build deps-wheel deps-cuda ## dist/dkv_cu13-….whl: the same with CUDA (CUDA_ARCHITECTURES="80 90")
	tools/dev/wheel.sh cuda $(if $(filter-out file,$(origin CUDA_ARCHITECTURES)),$(CUDA_ARCHITECTURES))

test-wheel: deps wheel ## the wheel in a bare environment: programs, library, README's first example
	DKV_WHEEL=$$(ls -t dist/dkv-*.whl | head -n 1) $(PYTHON) -m pytest -q -p no:cacheprovider --tb=short -rf tests/wheel

deb: deps-build deps-deb ## dist/dkv_….deb: programs, libdkv, man pages, completion and a hardened systemd unit, for this Debian
	tools/package/deb.sh

test-deb: deps deps-test deps-deb-test deb ## the .deb on a bare Debian with systemd: engines through the unit's sandbox, watchdog, removal (root)
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target dkv_c_engine
	tools/package/test.sh deb $(BUILD)

image: deps-image ## localhost/dkv:VERSION, built with podman or docker from Debian's packages
	tools/package/container/image.sh

test-image: deps deps-test deps-deb-test deps-image deb ## image and compose file in podman, Kubernetes manifests against their schemas (root; DKV_IMAGE_WHOLE=1: also compiles)
	$(CONFIGURE) -DDKV_TESTS=ON $(CUDA)
	cmake --build --preset $(PRESET) --target dkv_c_engine
	tools/package/test.sh image $(BUILD)

release: deps-build deps-wheel deps-deb deps-image ## dist/VERSION: wheels, .deb, what is linked (CycloneDX), checksums, signature (RELEASE_KEY=~/.ssh/id_ed25519)
	tools/release/release.sh $(RELEASE_KEY)

clean:        ## remove what was built
	rm -rf build
