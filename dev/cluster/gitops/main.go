// What GitOps controllers make of an object: Flux (and --wait of Helm 4) by its own kstatus, Argo CD by running a health
// script in the Lua that it runs them in.
//
// Argo CD's module asks for more of Go than this repository, so the few functions that run a health check are
// repeated here after util/lua of Argo CD 3.6: the same interpreter, its standard libraries closed but for package,
// base and table, one second of time, the same conversions both ways, the same refusals.
//
// Standard input: {"script": "...", "objects": [...]}; standard output: one verdict an object.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

type question struct {
	Script  string                      `json:"script"`
	Objects []unstructured.Unstructured `json:"objects"`
}

type health struct {
	Status  string `json:"status,omitempty"`
	Message string `json:"message,omitempty"`
}

type verdict struct {
	Kstatus health `json:"kstatus"`
	Argo    health `json:"argo"`
}

func main() {
	if err := answer(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answer() error {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	verdicts := []verdict{}
	for _, object := range asked.Objects {
		found, err := judge(&object, asked.Script)
		if err != nil {
			return fmt.Errorf("%s: %w", object.GetName(), err)
		}
		verdicts = append(verdicts, found)
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

func judge(object *unstructured.Unstructured, script string) (verdict, error) {
	computed, err := status.Compute(object)
	if err != nil {
		return verdict{}, err
	}
	argo, err := executeHealthLua(object, script)
	return verdict{Kstatus: health{string(computed.Status), computed.Message}, Argo: argo}, err
}

func executeHealthLua(object *unstructured.Unstructured, script string) (health, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	if err := openLibraries(state); err != nil {
		return health{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", decodeValue(state, object.Object))
	if err := state.DoString(script); err != nil {
		return health{}, err
	}
	return healthOf(state.Get(-1))
}

func openLibraries(state *lua.LState) error {
	// Argo CD adds os.time and os.date of its own; no script of ours asks what time it is.
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}} {
		call := lua.P{Fn: state.NewFunction(library.open), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return err
		}
	}
	return nil
}

func healthOf(value lua.LValue) (health, error) {
	if value.Type() == lua.LTNil {
		return health{}, nil
	}
	if value.Type() != lua.LTTable {
		return health{}, fmt.Errorf("expect table output from Lua script, not %s", value.Type())
	}
	text, err := luajson.Encode(value)
	if err != nil {
		return health{}, err
	}
	found := health{}
	if err := json.Unmarshal(text, &found); err != nil {
		empty := &json.UnmarshalTypeError{Value: "array", Type: reflect.TypeFor[health]()}
		if errors.As(err, &empty) {
			return health{}, nil
		}
		return health{}, err
	}
	switch found.Status {
	case "Unknown", "Progressing", "Suspended", "Healthy", "Degraded", "Missing":
		return found, nil
	}
	return health{"Unknown", "Lua returned an invalid health status"}, nil
}

func decodeValue(state *lua.LState, value any) lua.LValue {
	switch converted := value.(type) {
	case bool:
		return lua.LBool(converted)
	case float64:
		return lua.LNumber(converted)
	case int64:
		return lua.LNumber(converted)
	case string:
		return lua.LString(converted)
	case []any:
		list := state.CreateTable(len(converted), 0)
		for _, item := range converted {
			list.Append(decodeValue(state, item))
		}
		return list
	case map[string]any:
		table := state.CreateTable(0, len(converted))
		for key, item := range converted {
			table.RawSetH(lua.LString(key), decodeValue(state, item))
		}
		return table
	}
	return lua.LNil
}
