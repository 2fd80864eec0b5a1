from typing import Any

ffi: Any  # cffi.FFI, whose stub does not know what def_extern() gives
lib: Any
