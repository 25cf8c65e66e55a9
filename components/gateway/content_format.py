"""Does a chat template go through the parts of a message's content, or take it as one text? Pure.

vLLM asks this of a template's syntax tree and hands parts over accordingly; whoever wants the same
prompt must come to the same answer, so the rule here is vLLM's, its blind spots included:

- a *turn* is what a loop over ``messages`` (or over a variable made from it) names;
- a template takes parts when some loop goes over a turn's ``content``, over the parameter of the
  macro around it that is called with such a content, or, outside of macros, over a variable that
  is called ``content``.
"""

from collections.abc import Iterator

from jinja2 import nodes


def takes_parts(template: nodes.Template) -> bool:
    """True: content is a list of parts, always. False: it is one text, always."""
    turns = set(_turns(template))
    inside = {
        id(loop): _content_parameters(template, macro, turns)
        for macro in template.find_all(nodes.Macro)
        for loop in macro.find_all(nodes.For)
    }
    for loop in template.find_all(nodes.For):
        if any(_reads(loop.iter, turn, "content") for turn in turns):
            return True
        names = inside.get(id(loop), {"content"})
        if isinstance(loop.iter, nodes.Name) and loop.iter.name in names:
            return True
    return False


def _turns(template: nodes.Template) -> Iterator[str]:
    """Names of loop variables over ``messages`` and over what was made from it."""
    talks = ["messages"]
    for talk in talks:  # grows while it is read
        for assigned in template.find_all(nodes.Assign):
            name = getattr(assigned.target, "name", None)
            if name is not None and name not in talks and _reads(assigned.node, talk):
                talks.append(name)
    for loop in template.find_all(nodes.For):
        if isinstance(loop.target, nodes.Name) and any(_reads(loop.iter, t) for t in talks):
            yield loop.target.name


def _content_parameters(template: nodes.Template, macro: nodes.Macro, turns: set[str]) -> set[str]:
    """The parameters of a macro that some call gives a turn's content."""
    names = [argument.name for argument in macro.args]
    found = set()
    for call in template.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        given = [*zip(names, call.args, strict=False), *((k.key, k.value) for k in call.kwargs)]
        found |= {
            name
            for name, value in given
            if name in names and any(_reads(value, turn, "content") for turn in turns)
        }
    return found


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Is it the variable (or its ``key``), filtered, tested or sliced or not?"""
    match node:
        case nodes.Filter() | nodes.Test():
            return _reads(node.node, name, key)
        case nodes.Getitem(node=inner, arg=nodes.Slice()):
            return _reads(inner, name, key)
        case nodes.Getitem(node=inner, arg=nodes.Const(value=value)):
            return key is not None and value == key and _reads_variable(inner, name)
        case nodes.Getattr(node=inner, attr=attribute):
            return key is not None and attribute == key and _reads_variable(inner, name)
        case _:
            return key is None and _reads_variable(node, name)


def _reads_variable(node: nodes.Node | None, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
