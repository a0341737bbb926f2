val version : unit -> int
val count : unit -> int
