"""Test which values of a checkpoint each variable of a program gets, and which programs are refused."""

from __future__ import annotations

import pytest

from distributed_backup.errors import ProgramMismatchError
from distributed_backup.training.matching import Match, match

AUTOMATIC = {"generator", "chain_of_thought", "sequential_plan_synthesis", "generator_pool", "omega", "variable", "a"}
A, B = "140162974981696", "94837261504"  # ids on Linux and on macOS
C, D = "140551234567890", "140551234567999"


def layout(group: str, text: str) -> dict[str, list[dict[str, str]]]:
    """Read a layout from words such as `critic:s`: a module, and the schema of its variable."""
    variables = []
    for word in text.split():
        name, _, schema = word.partition(":")
        path = name if "/" in name else f"{name}/state_{name}"
        variables.append({"path": path, "schema": schema or "0"})
    return {group: variables}


def matched(saved: str, own: str, group: str = "trainable") -> Match:
    return match(layout(group, own), layout(group, saved), automatic=AUTOMATIC, schema_ids=())


@pytest.mark.parametrize(
    ("saved", "own", "places"),
    [
        pytest.param("critic summary", "critic summary", [0, 1], id="the same program"),
        pytest.param("", "", [], id="no variables"),
        pytest.param("critic summary", "summary critic", [1, 0], id="named modules changed places"),
        pytest.param("a_b c d", "d a_b c", [2, 0, 1], id="three named modules changed places"),
        pytest.param("step_1 step_2", "step_2 step_1", [1, 0], id="numbers in names of the user"),
        pytest.param("step_2 step_10", "step_10 step_2", [1, 0], id="numbers of several digits"),
        pytest.param("run_20261128 run_20261129", "run_20261129 run_20261128", [1, 0], id="dates in names"),
        pytest.param("schema_1 schema_2", "schema_2 schema_1", [1, 0], id="a name that ends like an automatic one"),
        pytest.param("generator_1x generator_2x", "generator_2x generator_1x", [1, 0], id="a number and a letter"),
        pytest.param("generator generator_1", "generator generator_1", [0, 1], id="automatic names"),
        pytest.param("generator_pool generator_pool_1", "generator_pool_4 generator_pool_5", [0, 1], id="a longer one"),
        pytest.param("generator generator_1", "generator_2 generator_3", [0, 1], id="more made before"),
        pytest.param("generator_5 generator_7", "generator_6 generator_7", [0, 1], id="more made between"),
        pytest.param("generator_9 generator_10", "generator generator_1", [0, 1], id="less made before"),
        pytest.param(
            "generator_1 generator", "generator_3 generator_2", [0, 1], id="made in reverse order, both times"
        ),
        pytest.param("generator critic", "critic generator_1", [1, 0], id="a named and an unnamed module"),
        pytest.param(
            "generator chain_of_thought", "chain_of_thought_1 generator_1", [1, 0], id="unnamed modules of two classes"
        ),
        pytest.param("generator:s generator_1:t", "generator:t generator_1:s", [1, 0], id="unnamed with two schemas"),
        pytest.param(
            "generator_chain_of_thought generator_chain_of_thought_1",
            "generator_chain_of_thought_4 generator_chain_of_thought_5",
            [0, 1],
            id="an inner module's name",
        ),
        pytest.param(
            "sequential_plan_synthesis/statesequential_plan_synthesis critic",
            "critic sequential_plan_synthesis_1/statesequential_plan_synthesis_1",
            [1, 0],
            id="a variable's name without a separator",
        ),
        pytest.param("generator_1_reward mean", "generator_2_reward mean", [0, 1], id="a counter inside a name"),
        pytest.param(
            "team/variable team/variable_1", "team/variable_7 team/variable_8", [0, 1], id="unnamed variables"
        ),
        pytest.param(
            "chain_of_thought/critic/s generator/critic/s",
            "generator_1/critic/s chain_of_thought_2/critic/s",
            [1, 0],
            id="equal names in two parents",
        ),
        pytest.param("f1 f1 mean", "mean f1 f1", [2, 0, 1], id="equal paths"),
        pytest.param(f"tool_{A} tool_{B}", f"tool_{C} tool_{D}", [0, 1], id="ids"),
        pytest.param(f"tool_{A} critic", f"critic tool_{B}", [1, 0], id="an id and a name"),
        pytest.param(f"doc_{A} doc_{B}", f"doc_{B} doc_{A}", [1, 0], id="long numbers that are no ids"),
    ],
)
def test_each_variable_gets_the_value_of_its_path(saved: str, own: str, places: list[int]) -> None:
    """Names are matched as they are. Counters and ids are not compared."""
    assert matched(saved, own) == Match(places={"trainable": places}, renamed=[])


@pytest.mark.parametrize(
    ("saved", "own", "reason"),
    [
        pytest.param("critic summary", "critic reviewer", "some names differ", id="one of two renamed"),
        pytest.param("critic summary", "summary reviewer", "some names differ", id="one renamed, one moved"),
        pytest.param("step_1 step_2", "step_2 step_3", "some names differ", id="the first of three replaced"),
        pytest.param("run_20261128 critic", "run_20261129 critic", "some names differ", id="a date in a name"),
        pytest.param("generator critic", "generator reviewer", "some names differ", id="renamed beside an unnamed one"),
        pytest.param("generator generator_1", "generator critic", "some names differ", id="one of two unnamed named"),
        pytest.param(
            "critic:s summary:t", "critic:t summary:s", "the program that made it", id="schemas changed places"
        ),
        pytest.param("critic:s summary:t", "editor:t author:s", "some names differ", id="renamed in another order"),
        pytest.param(
            "generator generator_1", "generator_1 generator", "in another order", id="unnamed, made in reverse"
        ),
        pytest.param("generator generator_1", "generator_7 generator_6", "in another order", id="and others before"),
        pytest.param("critic", "critic:t", "the program that made it", id="another schema"),
        pytest.param("critic", "reviewer:t", "the program that made it", id="another name and schema"),
        pytest.param("critic summary", "critic", "the program that made it", id="one fewer"),
        pytest.param("generator", "generator generator_1", "the program that made it", id="one more"),
        pytest.param("critic", "", "the program that made it", id="none"),
    ],
)
@pytest.mark.parametrize("group", ["trainable", "metrics"])
def test_a_program_of_which_it_is_unknown_which_is_which_is_refused(
    saved: str, own: str, reason: str, group: str
) -> None:
    """The error names the variables of both sides, and says what to do."""
    with pytest.raises(ProgramMismatchError) as caught:
        matched(saved, own, group)
    before, _, after = str(caught.value).partition(", the checkpoint's are ")
    sides = [[f"{item['path']}#{item['schema']}" for item in layout(group, side)[group]] for side in (own, saved)]
    assert before == f"the program does not fit the checkpoint: its {group} variables are {sides[0]}"
    assert after.startswith(f"{sides[1]} (path#schema); ")
    assert reason in after
    assert after.endswith("use another backup_dir")


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        pytest.param("critic", "reviewer", id="one"),
        pytest.param("critic_48213 summary_48213", "critic_51007 summary_51007", id="process ids in all names"),
        pytest.param("generator generator_1", "critic summary", id="names for unnamed modules"),
        pytest.param("critic:s summary:t", "author:s editor:t", id="two schemas"),
    ],
)
def test_variables_with_other_names_throughout_are_matched_by_order(saved: str, own: str) -> None:
    """The result lists the pairs."""
    found = matched(saved, own)
    pairs = [
        (mine["path"], theirs["path"]) for mine, theirs in zip(layout("", own)[""], layout("", saved)[""], strict=True)
    ]
    assert found == Match(places={"trainable": list(range(len(pairs)))}, renamed=pairs)


def omega(*schema_ids: str, name: str = "omega") -> str:
    """The paths of OMEGA's modules for trainable variables with these ids."""
    return " ".join(
        f"generator_{kind}_module_{schema_id}_{name}" for schema_id in schema_ids for kind in ("mutation", "crossover")
    )


@pytest.mark.parametrize(
    ("own", "saved_ids", "schema_ids", "places"),
    [
        pytest.param("critic summary", (A, B), (C, D), [0, 1, 2, 3], id="the same program"),
        pytest.param("summary critic", (A, B), (C, D), [2, 3, 0, 1], id="changed places"),
        pytest.param("summary critic", (A, B), (A, B), [2, 3, 0, 1], id="changed places, and the ids occur again"),
        pytest.param("critic summary", (A, B), (B, A), [0, 1, 2, 3], id="the same program, and the ids occur again"),
        pytest.param("critic summary", (A,), (C, C), [0, 1], id="the variables share a schema object"),
    ],
)
def test_the_modules_of_omega_follow_their_trainable_variable(
    own: str, saved_ids: tuple[str, ...], schema_ids: tuple[str, ...], places: list[int]
) -> None:
    """Their paths contain ids that tell nothing, but their order is that of the trainable variables."""
    saved_layout = layout("trainable", "critic summary") | layout("optimizer_trainable", omega(*saved_ids))
    own_layout = layout("trainable", own) | layout(
        "optimizer_trainable", omega(*dict.fromkeys(schema_ids), name="omega_1")
    )
    found = match(own_layout, saved_layout, automatic=AUTOMATIC, schema_ids=schema_ids)
    assert found.places["optimizer_trainable"] == places
    assert found.renamed == []


def test_a_group_that_the_checkpoint_lacks_is_refused_unless_it_is_empty() -> None:
    """A missing group counts as empty."""
    assert match(layout("metrics", ""), {}, automatic=(), schema_ids=()).places == {"metrics": []}
    with pytest.raises(ProgramMismatchError, match=r"its metrics variables are .*, the checkpoint's are \[\] "):
        match(layout("metrics", "mean"), {}, automatic=(), schema_ids=())
