# SPDX-License-Identifier: Apache-2.0
"""How Numba compiles functions that are only ever taken into kernels: to what LLVM links, and no further.

By itself Numba optimises each function and makes machine code of it, then does so again in each of its callers.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import InlineOverloads, IRLegalization, NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes, WithLifting


class Text(JITCodeLibrary):  # type: ignore[misc]
    """A function for its callers: they optimise it."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class TextLowering(NativeLowering):  # type: ignore[misc]
    _name = "noisefuse_text_lowering"

    def run_pass(self, state: Any) -> bool:
        models = state.targetctx.data_model_manager
        if counted := {str(kind) for kind in state.typemap.values() if models[kind].contains_nrt_meminfo()}:
            raise TypeError(f"{state.func_id.func_qualname}: would never give back {', '.join(counted)}")
        state.library = Text(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        entry: Any = [].append  # Numba asks for a builtin, of which each function has its own; nothing calls it
        state.targetctx.insert_user_function(entry, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=entry)
        return True


class Lean(CompilerBase):  # type: ignore[misc]
    """Without the passes that look for what is not in kernels."""

    unneeded: frozenset[Any] = frozenset({WithLifting, InlineClosureLikes, InlineOverloads, NopythonRewrites})
    lowering: Any = NativeLowering

    def define_pipelines(self) -> list[Any]:
        built = DefaultPassBuilder.define_nopython_pipeline(self.state)
        kept = [(step, why) for step, why in built.passes if step not in self.unneeded]
        built.passes = [(self.lowering if step is NativeLowering else step, why) for step, why in kept]
        return [built]


class Inlining(Lean):
    """And of functions that are taken into them, and handle numbers, types and addresses: of an array they would count
    a reference, and the pass that gives it back is not there."""

    unneeded = Lean.unneeded | {IRLegalization}
    lowering = TextLowering
