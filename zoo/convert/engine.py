from pathlib import Path
from zoo.convert.readers.archive import Archive, Entry, TensorInfo, TORCH_DTYPES
from safetensors.torch import save_file
NAMES = {v: k for k, v in TORCH_DTYPES.items()}
def DictArchive(tensors):
    return Archive(Path("memory"), "memory", {n: Entry(TensorInfo(n, tuple(t.shape), NAMES[t.dtype]), lambda t=t: t) for n, t in tensors.items()})
def write_tensors(state, path, shard_size=None):
    save_file({k: v.contiguous() for k, v in state.items()}, path)
