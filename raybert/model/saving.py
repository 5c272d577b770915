"""Write a module as a checkpoint that raybert and the reference load: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.names import TIED, canonical
from raybert.checkpoint.wholefile import write_text, write_whole
from raybert.errors import OutputError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def save_module(module: nn.Module, config: BertConfig, folder: Path | str) -> None:
    """Write a module's weights and config into ``folder``, made if it is missing.

    Both files appear whole or not at all, replacing those of their names. Weights are called as in the module,
    which is as in the reference.

    Raises:
        OutputError: the folder can't be made or written.
    """
    folder = Path(folder)
    tensors = _own_tensors(module, tied=config.tie_word_embeddings)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    saved = config.replace(architectures=[type(module).__name__], dtype=dtypes.pop() if len(dtypes) == 1 else None)
    text = saved.to_json_string()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            {
                # The metadata is how the reference recognises torch's layout.
                folder / WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
                folder / CONFIG_FILE: lambda path: write_text(path, text),
            }
        )
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: can't save the model: {error}") from error


def _own_tensors(module: nn.Module, *, tied: bool) -> dict[str, Tensor]:
    """The state dict as contiguous tensors on the CPU, none sharing memory: the format has no sharing.

    Copies of tied tensors are left out, as in the reference, which ties them again if the config says so.
    """
    state = module.state_dict()
    own = {canonical(name): tensor.data_ptr() for name, tensor in state.items()}
    copies = {copy for copy, source in TIED.items() if tied and copy in own and own[copy] == own.get(source)}
    tensors: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, parameter in state.items():
        if canonical(name) in copies:
            continue
        tensor = parameter.detach().cpu().contiguous()
        tensors[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return tensors
