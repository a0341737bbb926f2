(* Two threads beside the main one: `busy` they compute and allocate, `idle` they wait on a
   condition. The main one answers lines. *)

let stop = ref false
let lock = Mutex.create ()
let changed = Condition.create ()

let busy () =
  let kept = ref [] and n = ref 0 in
  while not !stop do
    n := Part.step !n;
    kept := if !n mod 1000 = 0 then [] else !n :: !kept
  done

let idle () =
  Mutex.lock lock;
  while not !stop do
    Condition.wait changed lock
  done;
  Mutex.unlock lock

let answer = function
  | "version" -> string_of_int (Part.version ())
  | "step" -> string_of_int (Part.step 0)
  | "steps" -> string_of_bool (Part.steps () > 0)
  | _ -> "what?"

let () =
  let body = if Sys.argv.(1) = "busy" then busy else idle in
  let threads = List.init 2 (fun _ -> Thread.create body ()) in
  print_endline "ready";
  (try
     while true do
       print_endline (answer (read_line ()))
     done
   with End_of_file -> ());
  Mutex.lock lock;
  stop := true;
  Condition.broadcast changed;
  Mutex.unlock lock;
  List.iter Thread.join threads
