"""Four neighbours read or written at once: 16 bytes an instruction in float32.

Numba loads numbers one by one and never joins them, so these say in LLVM what is meant: a vector of
four at a place that is a multiple of 16 bytes. In the global memory they become `ld.global.v4` and
`st.global.v4`, which the compile-only tests look for. The simulator has plain twins.
"""

from __future__ import annotations

from typing import Any

from fastneuron.kernels.numba_cuda.driver import SIMULATED, cuda, device_function, intrinsic, types

__all__ = ["load4", "load4_shared", "store4", "store4_shared", "thread_anew"]

#: Address spaces of NVVM: a pointer that says its own makes a load that need not find out.
_GLOBAL, _SHARED = 1, 3
#: Bytes that both kinds of four are a multiple of.
_ALIGNMENT = 16

if SIMULATED:

    @device_function
    def load4(array: Any, at: Any) -> Any:
        """Return four neighbours of a vector in global memory."""
        return array[at], array[at + 1], array[at + 2], array[at + 3]

    @device_function
    def store4(array: Any, at: Any, four: Any) -> None:
        """Write four neighbours of a vector in global memory."""
        for i in range(4):
            array[at + i] = four[i]

    load4_shared, store4_shared = load4, store4

    @device_function
    def thread_anew() -> Any:
        """Return the thread's number, and all that follows from it is found anew.

        A compiler knows that the number never changes and finds all places that follow from it
        before a loop over steps, for which there are too few registers.
        """
        return cuda.threadIdx.x

else:
    from llvmlite import ir

    def _place(context: Any, builder: Any, array: Any, value: Any, at: Any, space: int) -> Any:
        """Return a pointer to four numbers from `at` on."""
        number = context.get_value_type(array.dtype)
        data = context.make_array(array)(context, builder, value).data
        pointer = builder.gep(data, [at])
        own = builder.addrspacecast(pointer, ir.PointerType(number, space))
        return builder.bitcast(own, ir.PointerType(ir.VectorType(number, 4), space))

    def _loader(space: int) -> Any:
        @intrinsic
        def load(typingctx: Any, array: Any, at: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                vector = builder.load(_place(context, builder, array, args[0], args[1], space))
                vector.align = _ALIGNMENT
                index = ir.IntType(32)
                numbers = [builder.extract_element(vector, index(i)) for i in range(4)]
                return context.make_tuple(builder, signature.return_type, numbers)

            return types.UniTuple(array.dtype, 4)(array, types.int64), codegen

        return load

    def _storer(space: int) -> Any:
        @intrinsic
        def store(typingctx: Any, array: Any, at: Any, four: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                number = context.get_value_type(array.dtype)
                vector = ir.VectorType(number, 4)(ir.Undefined)
                for i in range(4):
                    each = builder.extract_value(args[2], i)
                    vector = builder.insert_element(vector, each, ir.IntType(32)(i))
                place = _place(context, builder, array, args[0], args[1], space)
                builder.store(vector, place, align=_ALIGNMENT)
                return context.get_dummy_value()

            four = types.UniTuple(array.dtype, 4)
            return types.void(array, types.int64, four), codegen

        return store

    load4, store4 = _loader(_GLOBAL), _storer(_GLOBAL)
    load4_shared, store4_shared = _loader(_SHARED), _storer(_SHARED)

    def _thread(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.IntType(32), [])
            return builder.call(ir.InlineAsm(kind, "mov.u32 $0, %tid.x;", "=r", True), [])

        return types.int32(), codegen

    thread_anew = intrinsic(_thread)
