"""Members of the other rooms with one mistake each: the contract that is named for the mistake must fail them."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from limbeck.align.base import Align
from limbeck.check import check, models, window
from limbeck.check.suite import bite
from limbeck.component import LOADED
from limbeck.data.base import Part, Step, key_of
from limbeck.evaluate.base import Evaluator
from limbeck.export.base import Exporter
from limbeck.forward.base import Forward
from limbeck.merge.base import Merge
from limbeck.model.text import Text
from limbeck.schedule.base import Schedule
from limbeck.signals import Logits, Row, TopK
from limbeck.student.base import Surgery
from limbeck.teacher._remembering import AbstractRemembering
from limbeck.teacher.cached import Cached

PLANTED: list[tuple[str, str, Callable[[], Any]]] = []


def planted(contract: str, words: str) -> Callable[[Any], Any]:
    """Notes a mistake: the contract that must fail, and words of its complaint."""
    return lambda make: PLANTED.append((contract, words, make)) or make


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Neither the planted kinds, nor models that one of them may have spoilt."""
    yield
    models.pair.cache_clear()
    window.LAST.clear()
    for key in [key for key in LOADED if key[1].startswith("bite:")]:
        del LOADED[key]


class Pairing(Forward):
    """Runs each role once; a final class spoils it."""

    def __call__(self, models, batch, needs):
        return {role: models.says(role, batch, names) for role, names in needs.items()}


@planted("teacher_untouched", "gradients of teacher.")
def a_gradient_that_reaches_the_teacher():
    class Leaking(Pairing):
        kind: Literal["bite:leaking"] = "bite:leaking"

        def __call__(self, models, batch, needs):
            models.models["teacher"].state = "through"
            models.models["teacher"].requires_grad_(True)
            return super().__call__(models, batch, needs)

    return Leaking


@planted("draws_before", "it draws while models run")
def noise_that_is_drawn_while_models_run():
    class Shaken(Pairing):
        kind: Literal["bite:shaken"] = "bite:shaken"

        def __call__(self, models, batch, needs):
            said = super().__call__(models, batch, needs)
            student = said["student"]
            return {
                **said,
                "student": replace(
                    student, values={n: x + 0.01 * torch.randn_like(x) if n.startswith("hidden") else x for n, x in student.values.items()}
                ),
            }

    return Shaken


@planted("asks_for_all", "forgets")
def a_forward_that_forgets_what_was_asked():
    class Forgetful(Pairing):
        kind: Literal["bite:forgetful"] = "bite:forgetful"

        def requires(self, needs):
            return {**needs, "teacher": ("logits",)}

    return Forgetful


class Keeping(AbstractRemembering):
    """Keeps final states; a final class spoils it."""

    @property
    def references(self):
        return ("config:tiny",)

    def capture(self, rows, role):
        return Cached(model="config:tiny").capture(rows, role)

    def attach(self, batch, models, kept):
        return Cached(model="config:tiny").attach(batch, models, kept)


@planted("no_gradient", "would learn")
def a_teacher_that_is_not_detached():
    class Attached(Keeping):
        kind: Literal["bite:attached"] = "bite:attached"

        def attach(self, batch, models, kept):
            said = super().attach(batch, models, kept).said["teacher"]
            old = said["logits"]
            return replace(batch, said={"teacher": replace(said, values={**said.values, "logits": Logits(old.hidden, old.head, True)})})

    return Attached


@planted("by_key", "depends on where in the window it stands")
def a_cache_that_is_read_by_place():
    class Placed(Keeping):
        kind: Literal["bite:placed"] = "bite:placed"

        def attach(self, batch, models, kept):
            return super().attach(batch, models, dict(zip(batch.keys, kept.values(), strict=False)))

    return Placed


@planted("tail_is_exact", "mass of the entries and the tail")
def a_tail_that_is_forgotten():
    class Short(Keeping):
        kind: Literal["bite:short"] = "bite:short"

        def attach(self, batch, models, kept):
            said = super().attach(batch, models, kept).said["teacher"]
            best = said["logits"].dense().log_softmax(-1).topk(8)
            top = TopK(best.indices, best.values.log_softmax(-1), torch.full((len(best.values),), -5.0))
            return replace(batch, said={"teacher": replace(said, values={"top_logits": top})})

    return Short


class Off(Text):
    """Looks one position too far back."""

    def says(self, view, names, inject):
        return super().says(replace(view, shift=view.shift + 1) if "label" in names else view, names, inject)


@planted("own_loss", "")
def a_label_shift_that_is_off_by_one():
    return spoilt(Off)


class PadById(Text):
    """Masks every position that holds the id of the padding, which is also the end of text."""

    def lay_out(self, view):
        flat, unflat, inputs = super().lay_out(view)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = (inputs["input_ids"] != self.tokenizer.pad_token_id).long()
        return flat, unflat, inputs


@planted("packing", "against padded")
def a_mask_from_ids():
    return spoilt(PadById)


class Restarting(Text):
    """Packs rows without telling positions apart: rows attend to each other."""

    def lay_out(self, view):
        flat, unflat, inputs = super().lay_out(view)
        if "position_ids" in inputs:
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
        return flat, unflat, inputs


@planted("packing", "packed against padded")
def packed_rows_that_see_each_other():
    return spoilt(Restarting)


class Normed(Text):
    """Hears the last block after the final norm, as `output_hidden_states` has it."""

    def tap(self, name):
        found = super().tap(name)
        last = name.startswith("hidden") and self.layer(name) == self.num_layers
        return replace(found, path=self.anatomy.path("final_norm")) if last else found


@planted("hidden_states", "after the final norm")
def a_last_layer_that_is_heard_after_the_norm():
    return spoilt(Normed)


def spoilt(cls: type[Text]) -> Text:
    good = models.family_of("llama")
    return cls(good.module, good.tokenizer, good.anatomy).eval()  # type: ignore[return-value]


@planted("keeps_function", "claimed; but its logits")
def a_surgery_that_claims_to_keep_the_function():
    class Careless(Surgery):
        kind: Literal["bite:careless"] = "bite:careless"
        keeps_function: ClassVar[bool] = True

        def __call__(self, role):
            with torch.no_grad():
                role.module.get_submodule(role.anatomy.path("output", 0)).weight.mul_(0.9)
            return role

    return Careless


@planted("reloads", "does not fit the weights")
def a_surgery_that_leaves_the_config_alone():
    class Unsaid(Surgery):
        kind: Literal["bite:unsaid"] = "bite:unsaid"

        def __call__(self, role):
            del role.module.get_submodule(role.anatomy.path("blocks"))[-1]
            role.num_layers -= 1
            return role

    return Unsaid


@planted("reduces", "claimed; but")
def a_surgery_that_claims_to_save_parameters():
    class Padded(Surgery):
        kind: Literal["bite:padded"] = "bite:padded"
        reduces: ClassVar[frozenset[str]] = frozenset({"parameters"})

        def __call__(self, role):
            return role

    return Padded


@planted("learns", "adapter.weight gets no finite gradient")
def new_weights_that_nothing_uses():
    class Idle(Surgery):
        kind: Literal["bite:idle"] = "bite:idle"

        def __call__(self, role):
            role.module.adapter = nn.Linear(2, 2)
            return role

    return Idle


@planted("same_again", "two students of one model differ")
def new_weights_from_the_global_generator():
    class Dicey(Surgery):
        kind: Literal["bite:dicey"] = "bite:dicey"

        def __call__(self, role):
            with torch.no_grad():
                role.module.get_submodule(role.anatomy.path("output", 0)).weight.normal_()
            return role

    return Dicey


@planted("keeps_weights", "may learn")
def a_surgery_that_lets_shared_weights_learn():
    class Sharing(Surgery):
        kind: Literal["bite:sharing"] = "bite:sharing"
        keeps_weights: ClassVar[bool] = True

        def __call__(self, role):
            return role

    return Sharing


@planted("learns", "and is not to learn")
def weights_that_learn_in_secret():
    class Secret(Surgery):
        kind: Literal["bite:secret"] = "bite:secret"

        def __call__(self, role):
            role.learns = ("*.mlp.*",)
            role.module.get_submodule("model.norm").register_forward_pre_hook(open_up)
            return role

    def open_up(norm, _):
        norm.weight.requires_grad_(True)

    return Secret


@planted("moves", "it does not say so")
def a_teacher_that_moves_in_secret():
    class Drifting(Keeping):
        kind: Literal["bite:drifting"] = "bite:drifting"

        def follow(self, models):
            with torch.no_grad():
                models["teacher"].module.model.norm.weight.mul_(1.5)

    return Drifting


@planted("symmetric", "depends on the order")
def a_merge_that_claims_to_be_symmetric():
    class Leaning(Merge):
        kind: Literal["bite:leaning"] = "bite:leaning"
        symmetric: ClassVar[bool] = True

        def __call__(self, name, tensors, base):
            return 0.7 * tensors[0] + 0.3 * tensors[1]

    return Leaning


@planted("self_merge", "moves by")
def a_merge_that_rounds():
    class Rounding(Merge):
        kind: Literal["bite:rounding"] = "bite:rounding"

        def __call__(self, name, tensors, base):
            return sum(t.bfloat16() for t in tensors).div(len(tensors)).to(tensors[0].dtype)

    return Rounding


@planted("keeps_dtype", "was torch.float16")
def a_merge_that_changes_the_dtype():
    class Widening(Merge):
        kind: Literal["bite:widening"] = "bite:widening"

        def __call__(self, name, tensors, base):
            return torch.stack([t.float() for t in tensors]).mean(0)

    return Widening


@planted("same_again", "other rows when they are made again")
def a_data_step_that_rolls_dice():
    class Sampled(Step):
        kind: Literal["bite:sampled"] = "bite:sampled"

        def rows(self, rows, place):
            return rows.each(lambda some: [row for row in some if torch.rand(()) < 0.9])

    return Sampled


@planted("keys", "changed, and its key did not")
def a_changed_row_with_its_old_name():
    class Lowered(Step):
        kind: Literal["bite:lowered"] = "bite:lowered"

        def rows(self, rows, place):
            return rows.each(lambda some: [replace(row, content={n: str(x).upper() for n, x in row.content.items()}) for row in some])

    return Lowered


@planted("same_again", "in another folder")
def names_that_depend_on_the_folder():
    class Located(Step):
        kind: Literal["bite:located"] = "bite:located"

        def rows(self, rows, place):
            return replace(rows, parts=(*rows.parts, Part((Row(key_of(str(len(Path(place.base).parts))), {"text": "here"}),))))

    return Located


@planted("same_again", "without a network")
def a_data_step_that_asks_a_server():
    class Asking(Step):
        kind: Literal["bite:asking"] = "bite:asking"

        def rows(self, rows, place):
            with socket.socket() as line:
                line.connect(("127.0.0.1", 9))
            return rows

    return Asking


class Ticking(nn.Module):
    """Counts in an attribute, which is in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0


@planted("windows_resume", "the third window differs")
def a_memory_that_no_checkpoint_keeps():
    class Growing(Step):
        kind: Literal["bite:growing"] = "bite:growing"

        def build(self, example):
            return Ticking()

        def window(self, batch, place, memory):
            memory.count += 1
            return replace(batch, weights=batch.weights * memory.count)

    return Growing


@planted("ends_hold", "above its end 1")
def a_schedule_that_leaves_its_ends():
    class Overshooting(Schedule):
        kind: Literal["bite:overshooting"] = "bite:overshooting"

        def value(self, step):
            return min(step / 100, 1.2)

        @property
        def ends(self):
            return 0.0, 1.0

    return Overshooting


@planted("perfect", "claimed; but the teacher against itself gets top1")
def an_evaluator_whose_teacher_is_not_perfect():
    class Strict(Evaluator):
        kind: Literal["bite:strict"] = "bite:strict"
        perfect: ClassVar = {"top1": 1.0}

        def __call__(self, exam):
            tables = {name: exam.table(name) for name in exam.subjects}
            return {name: {"top1": float((t.label == t.teacher_best).double().mean())} for name, t in tables.items()}

    return Strict


@planted("in_range", "outside of 0.0 to 1.0")
def a_share_in_percent():
    class Percent(Evaluator):
        kind: Literal["bite:percent"] = "bite:percent"
        ranges: ClassVar = {"top1": (0.0, 1.0)}

        def __call__(self, exam):
            return {name: {"top1": 100.0} for name in exam.subjects}

    return Percent


@planted("reads_only", "left in another mode")
def an_evaluator_that_leaves_a_model_training():
    class Untidy(Evaluator):
        kind: Literal["bite:untidy"] = "bite:untidy"

        def __call__(self, exam):
            for name in exam.subjects:
                with exam.open(name) as role:
                    role.train()
            return {}

    return Untidy


@planted("no_pickles", "can hold code: weights.pt")
def an_exporter_that_pickles():
    class Pickling(Exporter):
        kind: Literal["bite:pickling"] = "bite:pickling"

        def __call__(self, parcel):
            torch.save(parcel.role.module.state_dict(), parcel.folder / "weights.pt")
            return []

    return Pickling


@planted("student_untouched", "torch.bfloat16, was torch.float32")
def an_exporter_that_rounds_the_student_in_memory():
    class Casting(Exporter):
        kind: Literal["bite:casting"] = "bite:casting"

        def __call__(self, parcel):
            parcel.role.module.to(torch.bfloat16)
            return []

    return Casting


@planted("settles", "changes when it is settled again")
def an_alignment_that_never_settles():
    class Restless(Align):
        kind: Literal["bite:restless"] = "bite:restless"
        times: int = 0
        """How often it was settled."""

        def settle(self, models):
            return Restless(times=self.times + 1)

    return Restless


@planted("same_model", "beside itself")
def an_alignment_that_moves_one_side():
    class Skewed(Align):
        kind: Literal["bite:skewed"] = "bite:skewed"

        def __call__(self, role, said, batch):
            return said if role == "student" else replace(said, values={n: x + 1 if n.startswith("hidden") else x for n, x in said.values.items()})

    return Skewed


@pytest.mark.parametrize("contract, words, make", PLANTED, ids=[make.__name__ for _, _, make in PLANTED])
def test_a_planted_mistake_is_failed_by_the_contract_that_names_it(contract: str, words: str, make: Callable[[], Any]) -> None:
    found = bite(make(), contract)
    assert words in found, f"{contract} fails it, but for another reason: {found}"


def test_a_role_without_a_mistake_is_failed_by_none() -> None:
    report = check(spoilt(Text))
    assert report.passed, [row for row in report.rows if row.status == "failed"]
