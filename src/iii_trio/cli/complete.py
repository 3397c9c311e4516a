"""Shell completion: the script for a shell, and the names that a running engine knows."""

from collections.abc import Callable
from typing import Any, Final

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from . import COMPLETE_VARIABLE, PROGRAM
from .ask import Call, Target, Unanswered, hear, url_of
from .output import show

ANSWER_S: Final = 0.5
"""An engine that takes longer to answer completes nothing: nobody waits at a prompt."""
SHELLS: Final = ("bash", "zsh", "fish")

_WHOLE_IDS: Final = """
# ids such as state::get are one word
COMP_WORDBREAKS=${COMP_WORDBREAKS//:}
"""


def _from_engine(
    function_id: str, names: Callable[[Any], list[str]]
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """What completes an argument with names from an answer of the engine; with nothing when there is no answer."""

    def complete(context: click.Context, _parameter: click.Parameter, beginning: str) -> list[CompletionItem]:
        options = context.params
        target = Target(url_of(options.get("url"), options.get("address"), options.get("port")), ANSWER_S)

        async def talk(call: Call) -> Any:
            return await call(function_id, {"include_internal": True})

        try:
            answer = hear(target, talk)
        except Unanswered:
            return []
        return [CompletionItem(name) for name in names(answer) if name.startswith(beginning)]

    return complete


function_ids = _from_engine(
    "engine::functions::list", lambda answer: sorted({row["function_id"] for row in answer["functions"]})
)
queue_names = _from_engine("engine::queue::dlq_topics", lambda answer: sorted({row["topic"] for row in answer}))
entry_ids = _from_engine("configuration::list", lambda answer: [row["id"] for row in answer["configurations"]])


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    In ~/.bashrc:  eval "$(iii-trio completion bash)"
    In ~/.zshrc:   eval "$(iii-trio completion zsh)"
    For fish:      iii-trio completion fish \\
                     > ~/.config/fish/completions/iii-trio.fish

    Function ids, queues and configuration ids are completed too, where the engine of --url or III_URL answers at once.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = ShellComplete.source(kind(context.find_root().command, {}, PROGRAM, COMPLETE_VARIABLE))
    show(script + _WHOLE_IDS if shell == "bash" else script)
