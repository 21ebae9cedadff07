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

# Make the environment, or leave one that works as it is; pip from ensurepip, else by the interpreter's own pip.
make_environment() {
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    if [[ -e $venv && ! -e $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
      fail "$1 holds something else than an environment; give another place"
    fi
    "$PYTHON" -m venv --clear --without-pip "$venv"
  fi
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null 2>&1 ||
    "$PYTHON" -m pip --python "$venv/bin/python" install -qq pip 2>/dev/null ||
    fail "$PYTHON has no pip for a new environment; on Debian, apt-get install python3-venv"
}

packages=.${EXTRAS:+[$EXTRAS]}
if $train; then amount="torch for $TORCH; 2.5 GB, and some minutes the first time"; else amount="half a GB"; fi
echo "install: muxrec${packages#.} into $1 with Python $version, $amount"
SECONDS=0
make_environment "$1"
if $train; then install_torch; fi
pip install -qq -c "$constraints" -e "$packages"
problems=$(pip check) || fail "the packages do not fit together: $problems"
echo "install: done in $SECONDS s"
