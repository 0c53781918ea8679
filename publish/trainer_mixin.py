"""How a `Trainer` publishes: what `--push-to-hub` needs is checked first, and what is pushed is what `xacle push` would."""

from pathlib import Path

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from xacle.publish.license import terms_of
from xacle.publish.push import Publication, check_repo_id, check_token, create_repo, prepare, upload

logger = logging.get_logger(__name__)


def check_push(arguments) -> None:
    """Raise `ValueError` if training arguments with `push_to_hub` could not be followed, before any work."""
    if arguments.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        raise ValueError(f"--hub-strategy must be end or every_save, got {arguments.hub_strategy.value}")
    check_repo_id(_repo_id(arguments))
    check_token(arguments.hub_token)


def check_license(config, arguments) -> None:
    """Raise `ValueError` if the run is to be pushed and what its weights derive from does not allow that."""
    if arguments.push_to_hub:
        terms_of(config.weight_sources, arguments.hub_license, arguments.accept_license)


def _repo_id(arguments) -> str:
    return arguments.hub_model_id or Path(arguments.output_dir).absolute().name


class PublishingMixin:
    """The methods by which a `Trainer` creates a repository, writes a card and pushes."""

    record = None  # a `RunRecord`, if the run keeps one: cards are made of it

    def init_hf_repo(self, token=None, private=None):
        if self.is_world_process_zero():
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = create_repo(_repo_id(self.args), private, token or self.args.hub_token)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the model card of [`render_card`] instead of a table of the training's course."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            folder.joinpath("README.md").write_text(self._publication(folder).card, encoding="utf-8")

    def push_to_hub(self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs):
        """Save the model and upload what `xacle push` would: no more than the model, and nothing less."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        return self.upload_folder(self.args.output_dir, commit_message, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            if self.record is not None and self.is_world_process_zero():
                self.record.write(checkpoint_folder)
            try:
                self.upload_folder(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
            except (OSError, ValueError) as error:  # not worth the run; its end is pushed again
                logger.warning(f"checkpoint not pushed: {error}")

    def upload_folder(self, folder: str | Path, message: str, token=None, revision=None) -> CommitInfo | None:
        """Upload a model folder of this run, by the process that may: `xacle push` with the run's arguments.

        Raises:
            OSError, ValueError: if it fails; the former say where the model is.
        """
        if not self.is_world_process_zero():
            return None
        revision, token = revision or self.args.hub_revision, token or self.args.hub_token
        try:
            commit = upload(self._publication(folder), revision=revision, commit_message=message, token=token)
        except OSError as error:
            raise OSError(f"{error}. The model is in '{folder}': publish it with `xacle push`") from error
        logger.info(f"pushed: {commit.commit_url}")
        return commit

    def _publication(self, folder: str | Path) -> Publication:
        return prepare(
            folder,
            self.hub_model_id or _repo_id(self.args),
            license=getattr(self.args, "hub_license", None),  # which transformers' own TrainingArguments lack
            accept_license=getattr(self.args, "accept_license", False),
        )
