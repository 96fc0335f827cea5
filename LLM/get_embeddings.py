r"""A language model reads each client's text; its last hidden states, pooled and reduced, are the embedding.

    python LLM/get_embeddings.py                                                    -> search_llm
    python LLM/get_embeddings.py data_files=all_interactions_64.parquet \
        save_dir_name=smollm2_all_interactions n_components=128                     -> smollm2_all_interactions

`LLM/preprocessing_search.py` and `LLM/convert_to_text.py` write the texts. The language model is not trained, only
the PCA is fitted; both are kept as the fitted block (`LLM.recipe`). The model is HuggingFaceTB/SmolLM2-135M by
default. Any model of transformers works: ``model=/local/folder``, ``model=NAME/ON-THE-HUB``, or ``model=minilm``, a
small one that needs no network (all-MiniLM-L6-v2, whose weights are installed with the requirements). A run that was
killed is resumed when the command is run again.
"""

from omegaconf import DictConfig, OmegaConf

from LLM.settings import NOT_IN_LINEAGE, LanguageModelSettings
from LLM.texts import find_texts
from ubp.blocks.embeddings import read_lineage
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.recipe import make_block


def with_texts(config: DictConfig) -> DictConfig:
    """The config with the settings of its texts: texts of other settings make another embedding.

    Raises:
        UserError: a setting that makes no sense, or the file of the texts is missing.
    """
    common, settings = Common.of(config), LanguageModelSettings.of(config)
    texts = find_texts(common.paths, common.submit, settings.data_files)
    noted = OmegaConf.create(dict(config.items()))
    noted.text = read_lineage(texts).get("text")
    return noted


@command("LLM", "get_embeddings")
def main(config: DictConfig) -> None:
    make_block(with_texts(config), "LLM.recipe:LanguageModelRecipe", not_in_lineage=NOT_IN_LINEAGE)


if __name__ == "__main__":
    main()
