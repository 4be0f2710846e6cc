"""Checkpoints: Orbax with checksums.

Orbax restores damaged arrays without an error. Therefore the digest of every array is saved beside
the arrays and compared after reading.
"""

import hashlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from functa.runtime import mesh, processes, storage
from functa.runtime.errors import DamagedFileError, UserError

# Errors of the machine, not of the file: reading again may succeed.
_TRANSIENT_ERRORS = (MemoryError, OSError)
# Version of training states and exported fields. Must be increased whenever arrays are added or
# removed, or change their meaning: old parameters would decode to wrong images without an error.
FORMAT = 5
_METADATA_BYTES = 1 << 16  # of digests and Orbax's own files


def array_digests(tree: Any) -> dict[str, str]:
    """Digests of the leaves of a pytree: {path: "dtype[shape]:sha256"}.

    All processes must call it if arrays are sharded over them.
    """
    digests = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # One array at a time: a host may not have enough memory for a whole sharded state.
        value = np.ascontiguousarray(mesh.to_host(leaf))
        content = hashlib.sha256(value.tobytes()).hexdigest()
        digests[jax.tree_util.keystr(path)] = f"{value.dtype}{list(value.shape)}:{content}"
    return digests


def digest(tree: Any) -> str:
    """Digest "sha256:..." of the names, types and values of a pytree."""
    lines = sorted(f"{path} {content}" for path, content in array_digests(tree).items())
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own polls for preemption.

    A poll tells JAX's preemption service the step of this process. Orbax polls with the saved step from
    a background thread. The service could then select a step that a process has already passed, and the
    processes would hang. runtime/preemption.py polls instead.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The latest `keep` checkpoints in a directory.

    A checkpoint is a pytree of arrays and a dict `info` of JSON values. Saves run in the background. An
    interrupted save leaves no checkpoint.

    Args:
      directory: local path or gs://.
      keep: number of checkpoints; older ones are deleted.
      read_only: for programs that do not hold the lock of the run; leaves saves of others alone.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, read_only: bool = False):
        self.directory = epath.Path(directory)
        if not storage.is_remote(directory):
            self.directory = self.directory.resolve()  # Orbax rejects relative paths
        self._bytes = 0  # size of the newest save
        self._read_only = read_only
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                step_prefix="step",
            ),
            item_names=("state", "info"),
        )

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Starts to save in the background.

        Raises:
          ValueError: a checkpoint of this step or a later one exists; see `remove_after`.
          OSError: this save or the previous one failed because the disk is full.
        """
        record = {"format": FORMAT, "digests": array_digests(state), "info": info}
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _METADATA_BYTES
        with storage.explain_disk_full(self.directory, self._bytes):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(record)
                ),
            )
        if not saved:
            raise ValueError(f"cannot save step {step}: {self.directory} has steps {self.steps()}")

    def info(self, step: int) -> dict[str, Any]:
        """The `info` of a checkpoint.

        Raises:
          DamagedFileError: the checkpoint cannot be read.
        """
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(info=ocp.args.JsonRestore())
            )
            return restored["info"]["info"]
        except Exception as error:  # as in `restore`
            if isinstance(error, _TRANSIENT_ERRORS) and not isinstance(error, FileNotFoundError):
                raise
            raise DamagedFileError(
                f"{self.directory / f'step_{step}'} is damaged ({_first_line(error)}); delete the "
                "directory of the stage to train it again"
            ) from error

    def remove_after(self, step: int) -> None:
        """Deletes checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def restore(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest undamaged checkpoint. Deletes newer, damaged ones unless read_only.

        Args:
          template: pytree of jax.ShapeDtypeStruct with shardings.
        Returns:
          (step, arrays, info), or None if there is no checkpoint.
        Raises:
          DamagedFileError: all checkpoints are damaged; lists the damage of each.
          UserError: the checkpoint has the format of another version of functa.
        """
        damage = []
        for step in reversed(self.steps()):
            path = self.directory / f"step_{step}"
            restored, problem = self._read(step, template)
            # All processes must use the same checkpoint.
            problem = next(filter(None, processes.gather_texts(problem, str(path))), "")
            if not problem:
                self._require_format(path, restored["info"].get("format", 1))
                if not self._read_only:
                    self.remove_after(step)
                return step, restored["state"], restored["info"]["info"]
            damage.append(f"{path}: {problem}")
            logging.warning("damaged checkpoint, trying the previous one: %s", damage[-1])
        if damage:
            raise DamagedFileError(
                "all checkpoints are damaged; delete the directory of the stage to train it again:\n  "
                + "\n  ".join(damage)
            )
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, str]:
        """Reads one checkpoint. Returns its content and "", or None and a description of the damage."""
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template), info=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax raises a dozen types for a damaged file
            if isinstance(error, _TRANSIENT_ERRORS) and not isinstance(error, FileNotFoundError):
                raise
            return None, _first_line(error)
        saved = restored["info"]["digests"]
        digests = array_digests(restored["state"])
        wrong = [name for name, content in digests.items() if saved.get(name) != content]
        if wrong:
            return None, f"wrong checksum of {wrong[0]} and {len(wrong) - 1} more arrays"
        return restored, ""

    def _require_format(self, path: epath.Path, version: int) -> None:
        if version != FORMAT:
            raise UserError(
                f"{path} has format {version}, but this version of functa reads format {FORMAT}: use "
                "the version that wrote it, or train again in another directory"
            )

    def wait(self) -> None:
        """Waits until all saves are complete.

        Raises:
          OSError: the disk is full.
        """
        with storage.explain_disk_full(self.directory, self._bytes):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all saves are complete, and releases the directory."""
        with storage.explain_disk_full(self.directory, self._bytes):
            self._manager.close()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
