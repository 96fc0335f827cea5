"""The last search queries of each relevant client, as text for a language model.

    python LLM/preprocessing_search.py      -> text/search.parquet
    python LLM/get_embeddings.py            -> search_llm

One query per line, the newest last: its age in days, then its 16 codes (`LLM.texts`). Clients without a search are
not in the file.
"""

from omegaconf import DictConfig

from LLM.texts import make_texts
from ubp.cli.command import command


@command("LLM/text", "search")
def main(config: DictConfig) -> None:
    make_texts(config)


if __name__ == "__main__":
    main()
