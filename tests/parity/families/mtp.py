"""The multi-token-prediction module behind a family's last layer, as transformers drafts tokens with it.

    module = Module(network, layout)                   # of a causal language model that transformers made
    logits_TV = module.logits(maps, tokens_T, h_TD)    # h: of the same document, behind the last norm

Row i of a document of n tokens, i = 0 .. n - 2, sees h_i and t_{i+1} and predicts t_{i+2} (arXiv:2412.19437, 2.2).
Its parts by themselves, for other ways to hold the weights: `parameters`, `inputs`, `layer`.
"""

import torch
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import MtpLayer

AROUND = ("enorm.", "hnorm.", "eh_proj.", "post_norm.")  # the decoder layer


def shared_copies(stored):
    """Embedding and head of the module by name where they equal the trunk's, whose they then are: {copy: the trunk's}."""
    mains = {".embed_tokens.weight": "model.embed_tokens.weight", ".shared_head.head.weight": "lm_head.weight"}
    return {
        name: main
        for name, tensor in stored.items()
        for end, main in mains.items()
        if name.startswith("model.layers.") and name.endswith(end) and torch.equal(tensor, stored[main])
    }


class Module:
    def __init__(self, network, layout):
        self.config, self.layout = network.config, layout
        self.rotary = network.model.rotary_emb
        last = self.config.num_hidden_layers - 1
        self.prefix = f"model.layers.{last + 1}."
        # Of index `last` it is a layer like the last one.
        self.layer = MtpLayer(self.config, type(network.model.layers[-1]), type(network.model.norm), last)
        # GLM-5's layers give their indexer's choice beside the hidden state.
        self.layer.mtp_block.register_forward_hook(lambda _layer, _inputs, out: out[0] if type(out) is tuple else out)
        self.layer.to(next(network.parameters()).dtype).eval()

    def parameters(self, maps):
        """(parameters of `layer`, embedding, head)."""
        tensors = {
            name.removeprefix(self.prefix).replace("shared_head.norm.", "post_norm."): tensor
            for name, tensor in self.layout.network(maps).items()
            if name.startswith(self.prefix)
        }
        embedding, head = tensors.pop("embed_tokens.weight"), tensors.pop("shared_head.head.weight")
        parameters = {
            name if name.startswith(AROUND) else f"mtp_block.{name}": tensor for name, tensor in tensors.items()
        }
        missing = self.layer.state_dict().keys() ^ parameters.keys()
        assert not missing, f"in the checkpoint or the module alone: {sorted(missing)}"
        return parameters, embedding, head

    def inputs(self, embedding, documents, h_TD):
        """Arguments of `layer` for documents that lie end to end in one row; `h_TD` of all their tokens."""
        next_1TD = F.embedding(torch.cat([tokens_T[1:] for tokens_T in documents]), embedding)[None]
        lengths = [len(tokens_T) for tokens_T in documents]
        h_1TD = torch.cat([part_TD[:-1] for part_TD in h_TD.split(lengths)])[None]
        position_1T = torch.cat([torch.arange(length - 1, device=h_TD.device) for length in lengths])[None]
        return dict(
            inputs_embeds=next_1TD,
            previous_hidden_state=h_1TD,
            position_ids=position_1T,
            position_embeddings=self.rotary(next_1TD, position_ids=position_1T),
            attention_mask=create_causal_mask(
                config=self.config,
                inputs_embeds=next_1TD,
                attention_mask=None,
                past_key_values=None,
                position_ids=position_1T,
            ),
            past_key_values=None,
        )

    def logits(self, maps, tokens_T, h_TD):
        parameters, embedding, head = self.parameters(maps)
        inputs = self.inputs(embedding, [tokens_T], h_TD)
        return torch.func.functional_call(self.layer, parameters, kwargs=inputs)[0] @ head.T
