exception Limit of int

let total = ref 0
let name = "first"
let calls = ref 0
let table : (string, int) Hashtbl.t = Hashtbl.create 16

(* Captured the table when the unit was initialised. *)
let find = Hashtbl.find_opt table

let bump by =
  incr calls;
  total := !total + by;
  !total

let add a b = a + b

let seen word =
  let times = 1 + Option.value (find word) ~default:0 in
  Hashtbl.replace table word times;
  times

let guarded n = if n > 100 then raise (Limit n) else n
let hidden () = !calls

let same_table () =
  Hashtbl.replace table "same" 1;
  find "same" = Some 1
