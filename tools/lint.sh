#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is checked without running the library, where the extra "test" and the group "dev" are installed:
#     tools/lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."

ruff check
ruff format --check
ruff format --check --config pyproject.toml docs/*.py docs/inventories/*.py
mypy --strict src
bandit --quiet --configfile pyproject.toml --recursive src tools integrations
check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
zizmor --offline --quiet --no-progress .
find csrc tests \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -exec clang-format --dry-run -Werror {} +
# With what renders the recipe, and with what looks at licences and at the repository.
pytest -p no:cacheprovider tests/test_recipe.py tests/test_repository.py --allowed-skips /dev/null
