"""The tool of this example: arithmetic, by Python's own parser and nothing that a policy could run."""

from __future__ import annotations

import ast
import operator

from verl.tools.function_tool import function_tool

_LONGEST = 200
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@function_tool
def calculate(expression: str) -> str:
    """Calculate an arithmetic expression of numbers, + - * / and brackets.

    Args:
        expression: such as (12 + 8) * 3.
    """
    try:
        return f"{_value(ast.parse(expression[:_LONGEST], mode='eval').body):.12g}"
    except (SyntaxError, ValueError, ArithmeticError, TypeError) as error:
        return f"that can't be calculated: {error}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only numbers, + - * / and brackets are")
