r"""The last events of each relevant client, of every type, as text for a language model.

    python LLM/convert_to_text.py      -> text/all_interactions_64.parquet
    python LLM/get_embeddings.py data_files=all_interactions_64.parquet \
        save_dir_name=smollm2_all_interactions n_components=128      -> smollm2_all_interactions

One event per line, the newest last (`LLM.texts`). Of events of one type about the same subject (sku, url, query)
only the newest is kept.
"""

from omegaconf import DictConfig

from LLM.texts import make_texts
from ubp.cli.command import command


@command("LLM/text", "all_interactions")
def main(config: DictConfig) -> None:
    make_texts(config)


if __name__ == "__main__":
    main()
