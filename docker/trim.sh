#!/bin/sh
# Leaves out of a folder of packages what none of them needs to run: their tests, Triton, which pip
# brings in for PyTorch, and a compiler of protocol buffers.
set -eu
find "$1" -path '*/site-packages/triton*' -prune -exec rm -r {} +
find "$1" -path '*/site-packages/torch/bin/protoc*' -exec rm {} +
find "$1" -path '*/site-packages/*' -type d \( -name tests -o -name test \) -prune -exec rm -r {} +
