(* Fibers of Task wait in a queue; `start NAME` adds one, `step` lets each run to its next yield
   and prints what ended. *)

open Effect.Deep

let waiting : (unit -> unit) Queue.t = Queue.create ()
let ended : string list ref = ref []

let start name =
  match_with Task.run name
    {
      retc = (fun text -> ended := text :: !ended);
      exnc = raise;
      effc =
        (fun (type a) (asked : a Effect.t) ->
          match asked with
          | Task.Yield _ ->
              Some
                (fun (k : (a, unit) continuation) ->
                  Queue.add (fun () -> continue k ()) waiting)
          | _ -> None);
    }

let step () =
  let now = Queue.copy waiting in
  Queue.clear waiting;
  ended := [];
  Queue.iter (fun resume -> resume ()) now;
  String.concat "," (List.rev !ended)

let answer line =
  match String.split_on_char ' ' line with
  | [ "start"; name ] ->
      start name;
      string_of_int (Queue.length waiting)
  | [ "step" ] -> step ()
  | [ "compact" ] ->
      Gc.compact ();
      "compacted"
  | _ -> "what?"

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
