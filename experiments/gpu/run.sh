#!/usr/bin/env bash
# All of vitlab that waits for a GPU, in one command of at most nine minutes; see README.md beside this file.
#
#   experiments/gpu/run.sh [--toy] [OUT [NAME…]]
#
# OUT      folder for results.json and results.md (default: $OUT, or a new one in outputs/gpu); the same again
#          measures what is not finished there
# NAME     measure these alone, and anew
# --toy    the same on this CPU with networks of no use, to see that it works
# PYTHON   the Python that has torch (default: python3)
# WHEELS   folder of wheels of what is missing there, to be installed beside it without a network
# DATA     CIFAR-10 as class folders, or an archive of them; without it data=cifar10, downloaded if need be
# WORK     folder for runs, images and wheels (default: OUT/work)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
options=()
if [[ ${1:-} == --toy ]]; then
  options+=(--toy)
  shift
fi
out=$(realpath -m "${1:-${OUT:-$root/outputs/gpu/$(date +%Y-%m-%d_%H-%M-%S)}}")
work=$(realpath -m "${WORK:-$out/work}")
mkdir -p "$out" "$work"

export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
if [[ -n ${WHEELS:-} ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$work/site" "$WHEELS"/*.whl
  PYTHONPATH=$PYTHONPATH:$work/site
fi
if [[ -n ${DATA:-} ]]; then
  images=$DATA
  if [[ -f $DATA ]]; then
    images=$work/images
    mkdir -p "$images"
    tar -xf "$DATA" -C "$images" || "$python" -m tarfile -e "$DATA" "$images" # where there is no xz
  fi
  train=$(find -L "$images" -maxdepth 2 -type d -name train -print -quit)
  if [[ -z $train ]]; then
    echo "error: DATA=$DATA holds no folder train/ with a folder a class." >&2
    exit 1
  fi
  options+=(--data "$(realpath "${train%/train}")")
fi

cd "$root"
exec "$python" -m experiments.gpu.study "$out" "${@:2}" "${options[@]}" --work "$work" --seconds $((540 - SECONDS))
