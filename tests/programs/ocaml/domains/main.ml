(* Two domains are busy; the main one answers lines. *)

let stop = Atomic.make false
let mixed = Atomic.make 0
let seen = Array.init 2 (fun _ -> Atomic.make 0)

let body index () =
  let n = ref 0 in
  while not (Atomic.get stop) do
    let a = Part.first and b = Part.second in
    if a <> b then Atomic.incr mixed;
    Atomic.set seen.(index) a;
    n := !n + Part.work !n + 1
  done;
  !n

(* Waits until both busy domains have seen this version. *)
let reached version =
  while Array.exists (fun v -> Atomic.get v <> version) seen do
    Domain.cpu_relax ()
  done;
  "reached"

let answer line =
  match String.split_on_char ' ' line with
  | [ "version" ] -> string_of_int Part.first
  | [ "reached"; n ] -> reached (int_of_string n)
  | [ "mixed" ] -> string_of_int (Atomic.get mixed)
  | _ -> "what?"

let () =
  let domains = List.init 2 (fun index -> Domain.spawn (body index)) in
  print_endline "ready";
  (try
     while true do
       print_endline (answer (read_line ()))
     done
   with End_of_file -> ());
  Atomic.set stop true;
  List.iter (fun domain -> ignore (Domain.join domain)) domains
