val version : unit -> int
val step : int -> int
val steps : unit -> int
