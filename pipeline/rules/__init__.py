"""Keeps or drops rows. Each rule is one small pure function, applied at the step where its columns are known.

Input: in-flight rows. Output: the same rows, with a Status set on those that a rule drops.
Imports `source` and the modules below it.
base.py: defines rules. known.py, caption.py, patterns.py, url.py, image.py, similarity.py: the rules. custom.py: the
user's own.
"""

from pairmill.pipeline.rules import caption, image, known, patterns, similarity, url  # noqa: F401  (importing registers their rules)
from pairmill.pipeline.rules.base import SourceRules, apply_rules, rule, rules_at
from pairmill.pipeline.rules.check import check_rules, describe_blocklists
from pairmill.pipeline.rules.custom import CustomRule, CustomRuleError, at, load_custom_rule
from pairmill.pipeline.rules.isolated import isolated

__all__ = [
    "CustomRule",
    "CustomRuleError",
    "SourceRules",
    "apply_rules",
    "at",
    "check_rules",
    "describe_blocklists",
    "isolated",
    "load_custom_rule",
    "rule",
    "rules_at",
]
