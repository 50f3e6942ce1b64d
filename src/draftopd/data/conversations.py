"""What a record says: chat messages, ShareGPT's conversations, Alpaca's instructions, or one text."""

from collections.abc import Iterator, Mapping
from itertools import dropwhile
from typing import Any

from draftopd.data.prompts import Messages
from draftopd.errors import DraftError

Record = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")
MESSAGES = "messages"
LISTS = (MESSAGES, "conversations", "conversation")
"""fields that hold the turns of a conversation"""
SPEAKERS = {  # of ShareGPT's files
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
INSTRUCTION = "instruction"
CONTEXTS = ("input", "context")  # of Alpaca and of Dolly: what an instruction is about
QUESTIONS = (INSTRUCTION, "question", "query", "problem", "text", "input", "content")  # names of a prompt, likely first
TOOLS = ("tools", "functions")  # of a record
CALLS = ("tool_calls", "function_call")  # of a message


def turns(record: Record, field: str | None) -> Any:
    """What stands in a record's field of messages, or in one of ShareGPT's where there is none; None = nothing."""
    names = LISTS if field == MESSAGES else (field,)
    return next((record[name] for name in names if name is not None and record.get(name) is not None), None)


def prompts_of(where: str, listed: Any) -> list[Messages]:
    """What was said before each turn of the assistant, a last one that is still to come included.

    None where no user says anything. What the assistant says before the first question of a ShareGPT conversation is
    left out: there, long conversations are cut into pieces.

    Raises:
        DraftError: these are no messages.
    """
    said = _messages(listed)
    if said is None:
        raise DraftError(
            f"{where}: wrong messages: give role (one of {', '.join(ROLES)}) and content, or from (one of "
            f"{', '.join(SPEAKERS)}) and value, all of them texts"
        )
    roles = [turn["role"] for turn in said]
    ends = [at for at, role in enumerate(roles) if role == "assistant" and "assistant" not in roles[at - 1 : at]]
    ends += [] if roles[-1:] in ([], ["assistant"]) else [len(roles)]
    return [tuple(said[:end]) for end in ends if "user" in roles[:end]]


def _messages(listed: Any) -> list[dict[str, str]] | None:
    """None where they are none."""
    if not isinstance(listed, list) or not all(isinstance(turn, Mapping) for turn in listed):
        return None
    said = [_spoken(turn) if "from" in turn else (turn.get("role"), turn.get("content")) for turn in listed]
    if not all(role in ROLES and isinstance(content, str) for role, content in said):
        return None
    messages = [{"role": str(role), "content": str(content)} for role, content in said]
    if not any("from" in turn for turn in listed):
        return messages
    system = [turn for turn in messages[:1] if turn["role"] == "system"]
    return system + list(dropwhile(lambda turn: turn["role"] == "assistant", messages[len(system) :]))


def _spoken(turn: Record) -> tuple[str | None, Any]:
    speaker = turn["from"]
    return SPEAKERS.get(speaker) if isinstance(speaker, str) else None, turn.get("value")


def instruction(record: Record) -> str | None:
    """Alpaca's: the task, and what it is about; None where there is none."""
    task = record.get(INSTRUCTION)
    if not isinstance(task, str):
        return None
    contexts = [record[name] for name in CONTEXTS if isinstance(record.get(name), str) and record[name].strip()]
    return "\n\n".join([task, *contexts])


def advice(record: Record) -> str:
    """The option that reads a record in which nothing was found."""
    named = {name: value for name, value in record.items() if name.isidentifier()}  # others need quotes
    for name, value in named.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and {"role", "from"} & value[0].keys():
            return f"prompts.messages_field={name}"
    texts = [name for name, value in named.items() if isinstance(value, str) and value.strip()]
    likely = [name for name in QUESTIONS if name in texts] or texts
    return f"prompts.prompt_field={likely[0]}" if likely else "prompts.prompt_field"


def refuse_tools(where: str, record: Record, listed: Any) -> None:
    """Raises DraftError where a record has tools or calls of tools, which chat templates write, and we do not read."""
    messages = [turn for turn in listed if isinstance(turn, Mapping)] if isinstance(listed, list) else []
    named = [name for name in TOOLS if record.get(name) and (listed is not None or isinstance(record[name], list))]
    named += [name for name in CALLS if any(turn.get(name) or turn.get("from") == name for turn in messages)]
    if named:
        raise DraftError(
            f"{where} has {named[0]}, and only texts are read: write them into the content of messages as the target's "
            "chat template does, or leave such records out"
        )


def unread(listed: Any) -> Iterator[str]:
    """Keys of messages that say something and are not read."""
    for turn in listed if isinstance(listed, list) else ():
        if isinstance(turn, Mapping):
            read = ("from", "value") if "from" in turn else ("role", "content")
            yield from (key for key, value in turn.items() if value and key not in read)
