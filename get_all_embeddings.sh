#!/bin/sh
# Make all embeddings: twelve of the 2nd place, two of the 4th, and the wide features that one of them reads.
#
#     sh get_all_embeddings.sh                                  # overrides are given to every command:
#     sh get_all_embeddings.sh submit=False preset=demo
#     sh get_all_embeddings.sh jobs=2                           # this many commands at once; without it as many
#                                                               # as cores and memory allow; 1: one after another
#
# What is done is skipped by the commands themselves; the first that fails ends it, with its exit code. The commands
# are in configs/blocks.yaml. Works from any folder and changes to none, so a relative CHALLENGE_DATA_PATH means
# what it means to each command. Runs .venv/bin/python where there is one, else python3 or python; PYTHON=... names
# another.
set -eu

here=$(cd -- "$(dirname -- "$0")" && pwd)

if [ -n "${PYTHON:-}" ]; then
    :
elif [ -x "$here/.venv/bin/python" ]; then
    PYTHON=$here/.venv/bin/python
elif ! { PYTHON=$(command -v python3) || PYTHON=$(command -v python); }; then
    echo "error: no Python found; install it, or name one: PYTHON=/some/python sh get_all_embeddings.sh" >&2
    exit 127
fi

export PYTHON
exec "$PYTHON" "$here/scripts/all_embeddings.py" "$@"
