"""Training through the function behind the command."""

from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.run import train_folds


def test_a_new_training_sets_the_old_checkpoints_aside_and_a_finished_one_is_only_validated(own_small_world,
                                                                                            monkeypatch):
    monkeypatch.setattr(LDSegTrainer, "perform_actual_validation", lambda self, save_probabilities: None)

    def train(**options):
        return train_folds("7", ["3"], "3d_fullres", device="cpu", iterations_per_epoch=1, **options)[0]
    fold = train(epochs=1)
    first = (fold / "checkpoint_final.pth").read_bytes()
    train(continue_training=True, max_minutes=60.0)
    assert (fold / "checkpoint_final.pth").read_bytes() == first
    (fold / "validation").mkdir()
    (fold / "validation" / "old").touch()  # a kill before the new validation must not leave this one in its place
    train(epochs=1, restart=True)
    assert (fold / "previous_checkpoint_final.pth").read_bytes() == first
    assert (fold / "previous_validation" / "old").is_file() and not (fold / "validation").exists()
    assert (fold / "checkpoint_final.pth").read_bytes() != first
