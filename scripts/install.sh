#!/usr/bin/env bash
# Make or complete a virtual environment for this checkout: scripts/install.sh VENV
#
#   PYTHON       interpreter, 3.11 or newer (python3)
#   TORCH        cpu: a torch without CUDA libraries; cuda: the default build, and fbgemm with CUDA kernels (cpu)
#   EXTRAS       extras of pyproject.toml, separated by commas (train,server,dev)
#   CONSTRAINTS  file of exact versions; /dev/null resolves anew (constraints.txt)
set -euo pipefail

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-cpu}
EXTRAS=${EXTRAS-train,server,dev}  # none where it is set and empty

fail() {
  echo "install: $*" >&2
  exit 2
}

[[ $# -eq 1 ]] || fail "expected one argument, the environment to make; found $#; scripts/install.sh .venv"
mkdir -p "$(dirname "$1")"
venv=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
constraints=${CONSTRAINTS:-constraints.txt}
[[ -e $constraints ]] || fail "$constraints: no such file; give a path from the root of the checkout"

command -v "$PYTHON" >/dev/null || fail "no interpreter $PYTHON; install Python 3.11 or newer, or set PYTHON"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$PYTHON does not run"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "muxrec needs Python 3.11 or newer; found $PYTHON, which is $version; say, PYTHON=python3.12 make env"

train=false
if [[ ,$EXTRAS, == *,train,* ]]; then train=true; fi
if $train && [[ $(uname -s) != Linux ]]; then
  fail "training needs Linux: fbgemm has no build for $(uname -s); to score and serve, EXTRAS=server make env"
fi
case $TORCH in
  cpu) ;;
  cuda) EXTRAS=$(sed -E 's/(^|,)train(,|$)/\1train-gpu\2/' <<<"$EXTRAS") ;;
  *) fail "TORCH must be cpu or cuda; found $TORCH" ;;
esac

# Errors alone: what pip warns of, such as a find-links folder that is not on this machine, nobody here can act on.
pip() {
  PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 "$venv/bin/python" -m pip "$@"
}

# The version in pyproject.toml; for the CPU as a build of its own, since the plain version brings CUDA's libraries.
install_torch() {
  local wanted errors
  wanted=$(grep -om1 'torch==[0-9.]*' pyproject.toml)
  [[ $TORCH == cuda ]] || wanted+=+cpu
  errors=$(pip install -qq -c "$constraints" "$wanted" 2>&1) && return
  if [[ $TORCH == cpu && $errors == *"No matching distribution found for torch"* ]]; then
    pip install -qq -c "$constraints" --extra-index-url https://download.pytorch.org/whl/cpu "$wanted" ||
      fail "no $wanted in the configured package index, nor on download.pytorch.org"
  else
    echo "$errors" >&2
    return 1
  fi
}

echo "install: Python $version, torch for $TORCH, muxrec[$EXTRAS] into $1; a few minutes the first time, 2.5 GB"
SECONDS=0
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$PYTHON" -m venv --clear "$venv" || fail "$PYTHON cannot make environments; on Debian, apt-get install python3-venv"
fi
if $train; then install_torch; fi
pip install -qq -c "$constraints" -e ".${EXTRAS:+[$EXTRAS]}"
problems=$(pip check) || fail "the packages do not fit together: $problems"
echo "install: done in $SECONDS s"
