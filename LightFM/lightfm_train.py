"""Hybrid factorisation of client × sku with WARP; skus described by their names, clients by their searches.

    python LightFM/lightfm_train.py                            -> lightfm
    python LightFM/lightfm_train.py submit=False model.threads=1    the same bits each time

A client's vector is the sum of its features' vectors (Kula, "Metadata Embeddings for User and Item Cold-start
Recommendations", 2015): one feature of its own and one for each code in its searches. A sku is the sum of one
of its own and one for each code of its name (`LightFM.features`). The library is ``lightfm-next``, the maintained
fork of LightFM. A client's own part is computed from the skus it met, whether or not it was in the training
(`LightFM.recipe`), so any client can be encoded on any day.

What a removal does. WARP (Weston, Bengio and Usunier, "WSABIE", 2011) knows positive pairs only; its negatives
are skus drawn among all that the client has no pair with. What LightFM makes of a negative number is no dislike:
an interaction of -0.5 is skipped by the training and, being in the matrix, never drawn as a negative either, so
that it would protect the sku it should count against; a positive pair with a sample weight of -0.5 has its step
reversed, away from the margin that ends a step, so that it never comes to rest. So a removal counts before the
loss sees it: weights of a client and a sku add up, a pair that comes to more than nothing is positive with that
weight, and a pair that does not is left out, which makes its sku a negative like any other.

The vector is the embedding without the client's bias. 64 columns are the published size, and the bias is no
taste: WARP compares skus of one client, which a client's bias moves alike; what LightFM still subtracts from it
at each step only counts the client's steps, and `stat_features` counts events better.

From each vector the mean of all is taken off. What all clients have in common says that some skus are popular,
nothing of any client; but it is most of a vector's length (0.9 of it on the demo), and a merge that sets vectors
to length 1 would leave little else (docs/ablations.md).

Clients without a positive pair are left out. A client that was not in the training is encoded from the skus it met
and the codes of its searches. With ``model.threads=1`` the same seed gives the same bits; more
threads write to the same vectors without locks (Hogwild), in no fixed order.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("LightFM", "lightfm_train")
def main(config: DictConfig) -> None:
    make_block(config, "LightFM.recipe:LightFmRecipe")


if __name__ == "__main__":
    main()
