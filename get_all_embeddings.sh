#!/bin/sh
# Make all twelve embeddings of the 2nd place, one command after the other.
#
#     sh get_all_embeddings.sh                                  # overrides are given to every command:
#     sh get_all_embeddings.sh submit=False preset=demo
#
# What is done is skipped by the commands themselves; the first that fails ends it, with its exit code. Works from
# any folder and changes to none, so a relative CHALLENGE_DATA_PATH means what it means to each command. Runs
# .venv/bin/python where there is one, else python3 or python; PYTHON=... names another.
set -eu

here=$(cd -- "$(dirname -- "$0")" && pwd)
stages=14 stage=0 began=$(date +%s)

fail() { # exit code, message
    echo "error: $2" >&2
    exit "$1"
}

if [ -n "${PYTHON:-}" ]; then
    :
elif [ -x "$here/.venv/bin/python" ]; then
    PYTHON=$here/.venv/bin/python
elif ! { PYTHON=$(command -v python3) || PYTHON=$(command -v python); }; then
    fail 127 "no Python found; install it, or name one: PYTHON=/some/python sh get_all_embeddings.sh"
fi

run() { # script, its arguments
    script=$1
    shift
    line="python $script${*:+ $*}"
    stage=$((stage + 1)) started=$(date +%s) code=0
    "$PYTHON" "$here/$script" "$@" || code=$?
    [ "$code" -eq 0 ] || fail "$code" \
        "$line: failed with exit code $code, see above; mend it and start again: what is done is skipped"
    echo "[$stage/$stages] $line · $(($(date +%s) - started)) s"
}

run stat_features/stat_features.py "$@"
run ALS/als_embeddings.py --config-name=als_buy_add_categories "$@"
run ALS/als_embeddings.py --config-name=als_visits_relevant "$@"
run gru_autoencoder/gru_ae_day_event_embeddings.py "$@"
run gru_autoencoder/gru_ae_sku_text_embeddings.py "$@"
run gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_event_cat_price_sku_url "$@"
run gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_week_event_cat_price_sku_url "$@"
run next_sku/next_sku_embeddings.py "$@"
run next_url/next_url_embeddings.py "$@"
run LLM/preprocessing_search.py "$@"
run LLM/convert_to_text.py "$@"
run LLM/get_embeddings.py "$@"
run LLM/get_embeddings.py data_files=all_interactions_64.parquet save_dir_name=smollm2_all_interactions \
    n_components=128 "$@"
run LightFM/lightfm_train.py "$@"

echo "all embeddings · $(($(date +%s) - began)) s"
